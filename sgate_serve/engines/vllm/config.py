"""A model's architecture as vLLM's process sees it: our spec, vLLM's settings, the shards."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.platforms import current_platform

from sgate_serve.architecture.gated_units import PUBLISHED
from sgate_serve.architecture.sgate_config import SgateBlock
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.vllm.layer import LayerContext
from sgate_serve.errors import EngineError

QUANTIZATIONS = (None, "compressed-tensors")
# Of vLLM's fused experts.
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


def read_spec(config: dict[str, Any], source: str) -> ModelSpec:
    """Read a config that vLLM has changed: --disable-sliding-window takes the window out of it.

    Texts are then no longer than the window was, so attention is full; the layers keep their types,
    which choose their rotary settings.
    """
    # ModernBERT has another name for it.
    is_removed = config.get("sliding_window", True) is None
    if "layer_types" not in config or not is_removed:
        return ModelSpec.from_config(config, source)
    unlimited = {
        "sliding_window": config.get("max_position_embeddings"),
        "use_sliding_window": True,
    }
    if SgateBlock.read(config).windows:
        raise EngineError(
            f"{source}: --disable-sliding-window limits texts to the widest window, and some "
            "layers have a narrower one; leave it out"
        )
    spec = ModelSpec.from_config(config | unlimited, source)
    return replace(spec, windows=(None,) * len(spec.layers))


@dataclass(frozen=True)
class ModelContext:
    """What every part of the model is built from."""

    spec: ModelSpec
    vllm_config: Any
    num_shards: int

    @classmethod
    def of(cls, vllm_config: Any) -> "ModelContext":
        """Read the spec off the config that vLLM loaded; refuse what cannot be computed right.

        Raises EngineError, and CheckpointError for a config that is no model.
        """
        model_config = vllm_config.model_config
        spec = read_spec(model_config.hf_config.to_dict(), f"{model_config.model}")
        if model_config.quantization not in QUANTIZATIONS:
            raise EngineError(
                f"--quantization {model_config.quantization} is not supported for pruned models; "
                "convert with --precision int8 and leave the option out"
            )
        if spec.family.overflows_in_fp16 and model_config.dtype == torch.float16:
            raise EngineError(
                f"family {spec.family.name} overflows in float16; serve it with --dtype bfloat16"
            )
        if spec.has_recurrent_layers:
            check_recurrent(vllm_config)
        if (what := spec.for_torch_alone) is not None:
            raise EngineError(
                f"{model_config.model} has {what}, and the plugin has none yet; use --engine torch"
            )
        if spec.has_experts:
            check_mixture(spec, vllm_config)
        compilation = vllm_config.compilation_config
        if spec.lowered and compilation.mode and "all" in compilation.custom_ops:
            raise EngineError(
                "compiled with all custom ops on, vLLM 0.32 computes NaN from linears with index "
                "vectors; leave the compilation settings out, or give --enforce-eager"
            )
        return cls(spec, vllm_config, get_tensor_model_parallel_world_size())

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vllm_config.model_config.dtype
        return dtype

    def layer(self, index: int) -> LayerContext:
        return LayerContext(self.spec, index, self.vllm_config, self.num_shards)

    @property
    def cache_config(self) -> Any:
        return self.vllm_config.cache_config


def check_recurrent(vllm_config: Any) -> None:
    """Raise EngineError for settings that our recurrent layers do not follow."""
    model, cache = vllm_config.model_config.model, vllm_config.cache_config
    if vllm_config.speculative_config is not None:
        raise EngineError(
            f"{model}: the states of recurrent layers cannot go back to before a drafted token; "
            "leave --speculative-config out"
        )
    for name in ("mamba_cache_dtype", "mamba_ssm_cache_dtype"):
        if getattr(cache, name) not in ("auto", "float32"):
            raise EngineError(
                f"{model}: recurrent layers keep their states in float32; leave "
                f"--{name.replace('_', '-')} out"
            )


def check_mixture(spec: ModelSpec, vllm_config: Any) -> None:
    """Raise EngineError for settings with which vLLM's fused experts would fail or be wrong."""
    parallel = vllm_config.parallel_config
    if spec.activation not in ACTIVATIONS:
        raise EngineError(
            f"{vllm_config.model_config.model}: vLLM's experts have no hidden_act "
            f"{spec.activation!r}, only {', '.join(ACTIVATIONS)}; use another engine"
        )
    if (clamped := spec.clamped_units) is not None and clamped != PUBLISHED:
        raise EngineError(
            f"{vllm_config.model_config.model}: vLLM's experts clamp units with swiglu_alpha "
            f"{PUBLISHED.alpha} and swiglu_limit {PUBLISHED.limit}, and the config has "
            f"{clamped.alpha} and {clamped.limit}; use another engine"
        )
    if parallel.enable_eplb:
        raise EngineError("--enable-eplb is not supported for pruned mixtures; leave it out")
    is_divided = parallel.enable_expert_parallel or parallel.data_parallel_size > 1
    if is_divided and current_platform.is_cpu():
        raise EngineError(
            "on CPU, the experts of vLLM 0.32 crash or compute NaN with --enable-expert-parallel, "
            "and stop at the first request with --data-parallel-size; give --tensor-parallel-size "
            "alone"
        )
