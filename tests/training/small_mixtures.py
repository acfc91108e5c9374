"""Small random mixtures of experts with a tokenizer, and options of a run on them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.models.experts import unstack
from sgate_serve.training import TrainOptions
from tests.text_model import SENTENCES, write_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_QWEN = {"num_experts": 6, "moe_intermediate_size": 16, "intermediate_size": 24}
_HYBRID = {
    "num_experts": 6,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "full_attention_interval": 2,
}
# Qwen2-MoE has a shared expert, and its routers a loss of their own; one layer of Qwen3-MoE and
# of Qwen3-Next and the first one of GLM are no mixtures.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**_SIZES, "num_local_experts": 6, "intermediate_size": 16},
    "qwen2_moe": {
        **_SIZES,
        **_QWEN,
        "shared_expert_intermediate_size": 24,
        "output_router_logits": True,
    },
    "qwen3_moe": {**_SIZES, **_QWEN, "num_hidden_layers": 3, "mlp_only_layers": [1]},
    "qwen3_5_moe_text": {**_SIZES, **_HYBRID},
    "qwen3_next": {
        **_SIZES,
        **_HYBRID,
        "num_hidden_layers": 3,
        "intermediate_size": 32,
        "mlp_only_layers": [1],
    },
    "glm4_moe": {
        **_SIZES,
        "n_routed_experts": 6,
        "moe_intermediate_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "routed_scaling_factor": 1.5,
    },
    "gemma4_text": {
        **_SIZES,
        **_QWEN,
        "enable_moe_block": True,
        "top_k_experts": 2,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 7,
        "global_head_dim": 16,
    },
    "gpt_oss": {
        **_SIZES,
        "num_local_experts": 6,
        "intermediate_size": 16,
        "sliding_window": 7,
        "swiglu_limit": 1.5,
    },
}


def small_mixture(family: str, seed: int = 0) -> PreTrainedModel:
    """Build a stock model whose routers prefer some experts to others."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **MIXTURES[family])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, experts_implementation="eager"
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("mlp.gate.weight", "mlp.router.weight", "router.proj.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.endswith("proj_bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, std=0.1)
    return model


def unstacked(stock: PreTrainedModel) -> tuple[Any, ModelSpec]:
    """Copy a stock model as training opens it; return the copy and its architecture."""
    model, spec = deepcopy(stock), ModelSpec.from_config(stock.config.to_dict(), "test model")
    model.config.use_cache = False
    unstack(model, spec)
    return model, spec


def mixture_run(folder: Path, family: str, **options: Any) -> TrainOptions:
    """Write base and text to `folder`; return options that leave the result in `gates`."""
    small_mixture(family).save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    text = folder / "text.txt"
    text.write_text("\f".join([*SENTENCES] * 12), encoding="utf-8")
    given: dict[str, Any] = {
        "steps": 4,
        "batch_size": 2,
        "seq_len": 16,
        "lora_rank": 2,
        "eval_blocks": 4,
        "precision": "fp32",
        "no_control": True,
        **options,
    }
    return TrainOptions(base=str(folder / "base"), data=text, out=folder / "gates", **given)
