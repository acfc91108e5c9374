"""What vLLM must read differently in the config of a model with recurrent layers."""

import logging
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from sgate_serve.architecture.spec import ModelSpec

logger = logging.getLogger(__name__)

IMAGE_FIELDS = ("mrope_section", "mrope_interleaved")


class HybridConfig(VerifyAndUpdateConfig):
    """Changes vLLM's settings before it plans positions and the cache.

    Qwen3.5 rotates by three positions, one for each axis of an image; in a text they are the same,
    so that the rotation is the plain one. And vLLM 0.32 caches no prefixes of a model that could
    have states and has lost them all.
    """

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        model_config, cache = vllm_config.model_config, vllm_config.cache_config
        settings = getattr(model_config.hf_config, "rope_parameters", None) or {}
        for field in IMAGE_FIELDS:
            settings.pop(field, None)
        spec = ModelSpec.from_config(model_config.hf_config.to_dict(), f"{model_config.model}")
        has_states = any(layer.is_recurrent and layer.num_heads for layer in spec.layers)
        if cache.enable_prefix_caching and not has_states:
            logger.info("%s has no recurrent layer left: no prefix is cached", model_config.model)
            cache.enable_prefix_caching = False
