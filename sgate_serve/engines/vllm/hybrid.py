"""Decoders with recurrent layers: what vLLM must know of their states before it builds a model."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from vllm.model_executor.layers.mamba.mamba_utils import (
    get_conv_copy_spec,
    get_temporal_copy_spec,
)

from sgate_serve.engines.vllm.config import read_spec
from sgate_serve.engines.vllm.decoder import (
    UnevenDecoderClassifier,
    UnevenDecoderEmbedder,
    UnevenForCausalLM,
)
from sgate_serve.engines.vllm.recurrence import STATE_TYPES, Shapes, largest_state


class WithStates:
    """vLLM's interfaces `IsHybrid` and `HasInnerState`.

    A page of its cache holds the largest state of all layers; smaller ones leave its end unused.
    """

    is_hybrid: ClassVar[Literal[True]] = True
    has_inner_state: ClassVar[Literal[True]] = True

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> Shapes:
        model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
        spec = read_spec(model_config.hf_config.to_dict(), f"{model_config.model}")
        return largest_state(spec, parallel.tensor_parallel_size)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, ...]:
        return STATE_TYPES

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, ...]:
        return get_temporal_copy_spec, get_conv_copy_spec

    @classmethod
    def get_mamba_state_copy_funcs(cls, mamba_types: set[Any]) -> Mapping[Any, tuple[Any, ...]]:
        return dict.fromkeys(mamba_types, cls.get_mamba_state_copy_func())


class HybridForCausalLM(WithStates, UnevenForCausalLM):
    """A causal language model of which some layers are recurrent."""


class HybridDecoderClassifier(WithStates, UnevenDecoderClassifier):
    """A classifier on the last token of such a decoder."""


class HybridDecoderEmbedder(WithStates, UnevenDecoderEmbedder):
    """Such a decoder whose last hidden states are the result."""
