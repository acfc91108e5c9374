"""The table of supported families, by `model_type`."""

from collections.abc import Mapping

from sgate_serve.architecture.encoder_families import BERT, DISTILBERT, MODERNBERT, ROBERTA
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.gemma_families import GEMMA2, GEMMA3, GEMMA4
from sgate_serve.architecture.gpt_families import GPT2, GPT_NEOX
from sgate_serve.architecture.hybrid_families import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from sgate_serve.architecture.llama_families import (
    GRANITE,
    LLAMA,
    MISTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
    STARCODER2,
)
from sgate_serve.architecture.mixture_families import (
    GLM4_MOE,
    GPT_OSS,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
)

_DECODERS = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, STARCODER2, PHI3, GEMMA2, GEMMA3),
    *(GEMMA4, OLMO2, OLMO3, GPT2, GPT_NEOX, QWEN3_5),
)
_MIXTURES = (*(MIXTRAL, QWEN2_MOE, QWEN3_MOE, QWEN3_NEXT, QWEN3_5_MOE, GLM4_MOE, GPT_OSS),)
_ENCODERS = (BERT, ROBERTA, DISTILBERT, MODERNBERT)
FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (*_DECODERS, *_MIXTURES, *_ENCODERS)
}
