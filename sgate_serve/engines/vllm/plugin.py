"""The plugin that vLLM calls in each of its processes: it registers our config and model classes.

Models are registered by name, so vLLM's layers are not imported before one is loaded.
"""

from collections.abc import Iterator

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.sgate_config import SGATE_CLASS_PREFIX

DECODER = "sgate_serve.engines.vllm.decoder"
ENCODER = "sgate_serve.engines.vllm.encoder"
DECODERS = {
    CAUSAL_LM: f"{DECODER}:UnevenForCausalLM",
    CLASSIFICATION: f"{DECODER}:UnevenDecoderClassifier",
    BASE: f"{DECODER}:UnevenDecoderEmbedder",
}
HYBRID = "sgate_serve.engines.vllm.hybrid"
HYBRIDS = {
    CAUSAL_LM: f"{HYBRID}:HybridForCausalLM",
    CLASSIFICATION: f"{HYBRID}:HybridDecoderClassifier",
    BASE: f"{HYBRID}:HybridDecoderEmbedder",
}
ENCODERS = {
    CLASSIFICATION: f"{ENCODER}:UnevenEncoderClassifier",
    BASE: f"{ENCODER}:UnevenEncoderEmbedder",
}


def register() -> None:
    """Register `model_type: sgate` with transformers and its architectures with vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import sgate_serve.models  # noqa: F401  # registers the config
    from sgate_serve.engines.vllm.hybrid_config import HybridConfig

    for architecture, target in architectures():
        ModelRegistry.register_model(architecture, target)
        if target in HYBRIDS.values():
            MODELS_CONFIG_MAP[architecture] = HybridConfig


def architectures() -> Iterator[tuple[str, str]]:
    """Yield every architecture that a pruned folder can name, with the class that loads it."""
    for family in FAMILIES.values():
        targets = ENCODERS if family.is_encoder else DECODERS
        targets = targets if family.recurrence is None else HYBRIDS
        for task, row in family.tasks.items():
            yield f"{SGATE_CLASS_PREFIX}{row.model_class}", targets[task]
