"""Positions of Qwen3.5: its rotation has a part for each axis of an image, and texts have none."""

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

IMAGE_FIELDS = ("mrope_section", "mrope_interleaved")


class TextPositions(VerifyAndUpdateConfig):
    """Takes the parts out of a config before vLLM plans positions of three numbers for them.

    In a text the three are the same, so that the rotation is the plain one.
    """

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        settings = getattr(vllm_config.model_config.hf_config, "rope_parameters", None) or {}
        for field in IMAGE_FIELDS:
            settings.pop(field, None)
