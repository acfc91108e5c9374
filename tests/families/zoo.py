"""Small random models of every family, with the family's special features switched on.

The configs are the real transformers ones at tiny sizes. Weights, biases and norms are random
with a large spread, so that an error in any tensor shows.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from tests.families.gemma_zoo import GEMMA_ZOO
from tests.families.random_weights import randomize
from tests.families.variant import Task, Variant
from tests.families.zoo_configs import (
    BIASES,
    CLAMPED,
    DECODER,
    DISTILBERT,
    ENCODER,
    EXPERTS,
    GLM_EXPERTS,
    GPT2,
    GPT_OSS,
    GPT_OSS_YARN,
    GRANITE,
    HYBRID,
    HYBRID_EXPERTS,
    HYBRID_LONE_CHOICE,
    HYBRID_SPARSE,
    LONGROPE,
    MODERNBERT,
    NEOX,
    QWEN_EXPERTS,
    SMOLLM3,
    VOCABULARY,
    WINDOW,
    WITH_HEAD_DIM,
    YARN,
)

__all__ = ["AUTO_CLASSES", "LENGTH", "ON_ENGINES", "VARIANTS", "ZOO", "Task", "Variant"]
__all__ += ["build", "padded_batch", "token_batch"]

LENGTH = 12

AUTO_CLASSES: dict[Task, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "base": AutoModel,
}


ZOO: Mapping[str, list[Variant]] = {
    "llama": [
        Variant("llama", "plain", "causal-lm", DECODER),
        Variant(
            "llama",
            "biased-tied",
            "causal-lm",
            DECODER | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ),
        Variant("llama", "classifier", "classification", WITH_HEAD_DIM),
    ],
    "mistral": [
        Variant("mistral", "full", "causal-lm", DECODER | {"sliding_window": None}),
        Variant("mistral", "sliding", "causal-lm", WITH_HEAD_DIM | {"sliding_window": WINDOW}),
    ],
    "qwen2": [
        Variant("qwen2", "tied", "causal-lm", DECODER | {"tie_word_embeddings": True}),
        Variant(
            "qwen2",
            "sliding",
            "causal-lm",
            DECODER
            | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
    ],
    "qwen3": [
        Variant("qwen3", "tied", "causal-lm", WITH_HEAD_DIM | {"tie_word_embeddings": True}),
        Variant(
            "qwen3",
            "biased-sliding",
            "causal-lm",
            WITH_HEAD_DIM
            | {"use_sliding_window": True, "sliding_window": WINDOW, "attention_bias": True}
            | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        ),
    ],
    "smollm3": [
        Variant("smollm3", "tied", "causal-lm", SMOLLM3 | {"tie_word_embeddings": True}),
        Variant(
            "smollm3",
            "biased-sliding",
            "causal-lm",
            SMOLLM3
            | {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layers": [0, 1, 0]}
            | {"attention_bias": True, "mlp_bias": True},
        ),
    ],
    "granite": [
        Variant("granite", "scaled", "causal-lm", DECODER | GRANITE),
        Variant(
            "granite",
            "biased-tied",
            "causal-lm",
            DECODER
            | GRANITE
            | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ),
    ],
    "starcoder2": [
        Variant("starcoder2", "tied", "causal-lm", DECODER | {"tie_word_embeddings": True}),
        Variant(
            "starcoder2",
            "sliding-without-biases",
            "causal-lm",
            DECODER | {"sliding_window": WINDOW, "use_bias": False, "hidden_act": "relu"},
        ),
    ],
    "phi3": [
        Variant("phi3", "partial-rotary", "causal-lm", DECODER | {"partial_rotary_factor": 0.5}),
        Variant("phi3", "longrope", "causal-lm", DECODER | LONGROPE),
        Variant("phi3", "sliding", "causal-lm", DECODER | {"sliding_window": WINDOW}),
    ],
    **GEMMA_ZOO,
    "olmo2": [
        Variant("olmo2", "tied", "causal-lm", DECODER | {"tie_word_embeddings": True}),
        Variant(
            "olmo2",
            "biased",
            "causal-lm",
            WITH_HEAD_DIM | {"attention_bias": True, "num_key_value_heads": 4},
        ),
    ],
    "olmo3": [
        Variant(
            "olmo3",
            "pattern",
            "causal-lm",
            DECODER | {"num_hidden_layers": 4, "sliding_window": WINDOW},
        ),
        Variant(
            "olmo3",
            "biased-yarn",
            "causal-lm",
            WITH_HEAD_DIM
            | {"attention_bias": True, "sliding_window": WINDOW, "tie_word_embeddings": True}
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
            | {"rope_parameters": YARN},
        ),
    ],
    "mixtral": [
        Variant("mixtral", "full", "causal-lm", EXPERTS),
        Variant(
            "mixtral",
            "sliding-lone-choice",
            "causal-lm",
            EXPERTS | {"sliding_window": WINDOW, "head_dim": 16, "num_experts_per_tok": 1},
        ),
    ],
    "qwen2_moe": [
        Variant(
            "qwen2_moe",
            "shared",
            "causal-lm",
            QWEN_EXPERTS | {"shared_expert_intermediate_size": 18},
        ),
        Variant(
            "qwen2_moe",
            "sliding-normalized",
            "causal-lm",
            QWEN_EXPERTS
            | {"shared_expert_intermediate_size": 10, "norm_topk_prob": True, "qkv_bias": False}
            | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
    ],
    "qwen3_moe": [
        Variant(
            "qwen3_moe",
            "normalized",
            "causal-lm",
            QWEN_EXPERTS | {"head_dim": 16, "norm_topk_prob": True},
        ),
        Variant(
            "qwen3_moe",
            "biased-sliding-sparse",
            "causal-lm",
            QWEN_EXPERTS
            | {"head_dim": 16, "attention_bias": True, "mlp_only_layers": []}
            | {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": WINDOW},
        ),
    ],
    "glm4_moe": [
        Variant("glm4_moe", "normalized", "causal-lm", GLM_EXPERTS),
        Variant(
            "glm4_moe",
            "biased-wide-shared-unnormalized",
            "causal-lm",
            GLM_EXPERTS
            | {"attention_bias": True, "use_qk_norm": False, "norm_topk_prob": False}
            | {"n_shared_experts": 2, "first_k_dense_replace": 2, "partial_rotary_factor": 0.25},
        ),
    ],
    "gpt_oss": [
        Variant("gpt_oss", "alternating", "causal-lm", GPT_OSS),
        Variant(
            "gpt_oss",
            "unbiased-tied-clamped",
            "causal-lm",
            GPT_OSS
            | {"attention_bias": False, "tie_word_embeddings": True}
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
            | {"rope_parameters": GPT_OSS_YARN}
            | CLAMPED,
        ),
        Variant("gpt_oss", "classifier", "classification", GPT_OSS),
    ],
    "qwen3_5_text": [
        Variant(
            "qwen3_5_text",
            "tied",
            "causal-lm",
            HYBRID
            | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
            | {"tie_word_embeddings": True},
        ),
        Variant(
            "qwen3_5_text",
            "biased-half-rotary",
            "causal-lm",
            HYBRID
            | {"full_attention_interval": 2, "num_hidden_layers": 4, "attention_bias": True}
            | {"linear_conv_kernel_dim": 3, "linear_num_value_heads": 4}
            | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
        ),
        Variant(
            "qwen3_5_text", "classifier", "classification", HYBRID | {"full_attention_interval": 2}
        ),
        Variant(
            "qwen3_5_text",
            "base-narrow-heads",
            "base",
            HYBRID
            | {"full_attention_interval": 2, "head_dim": 12, "hidden_act": "gelu_pytorch_tanh"},
        ),
    ],
    "qwen3_5_moe_text": [
        Variant("qwen3_5_moe_text", "tied", "causal-lm", HYBRID_EXPERTS),
        Variant("qwen3_5_moe_text", "biased-untied-lone-choice", "causal-lm", HYBRID_LONE_CHOICE),
    ],
    "qwen3_next": [
        Variant("qwen3_next", "tied", "causal-lm", HYBRID_EXPERTS),
        Variant("qwen3_next", "biased-unnormalized-sparse", "causal-lm", HYBRID_SPARSE),
    ],
    "gpt2": [
        Variant("gpt2", "tied", "causal-lm", GPT2),
        Variant(
            "gpt2",
            "scaled-by-layer",
            "causal-lm",
            GPT2 | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
        ),
        Variant("gpt2", "classifier", "classification", GPT2),
    ],
    "gpt_neox": [
        Variant(
            "gpt_neox", "pythia", "causal-lm", NEOX | {"rotary_pct": 0.25, "rotary_emb_base": 100}
        ),
        Variant(
            "gpt_neox",
            "sequential-tied",
            "causal-lm",
            NEOX
            | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "relu"}
            | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}
            | {"tie_word_embeddings": True},
        ),
        Variant("gpt_neox", "classifier", "classification", NEOX),
    ],
    "bert": [
        Variant("bert", "pooled", "base", ENCODER),
        Variant("bert", "classifier", "classification", ENCODER),
    ],
    "roberta": [
        Variant("roberta", "pooled", "base", ENCODER | {"pad_token_id": 1}),
        Variant("roberta", "classifier", "classification", ENCODER | {"pad_token_id": 1}),
    ],
    "distilbert": [
        Variant("distilbert", "base", "base", DISTILBERT),
        Variant("distilbert", "classifier", "classification", DISTILBERT),
        Variant(
            "distilbert", "relu-classifier", "classification", DISTILBERT | {"activation": "relu"}
        ),
    ],
    "modernbert": [
        Variant("modernbert", "base", "base", MODERNBERT),
        Variant("modernbert", "classifier", "classification", MODERNBERT),
        Variant(
            "modernbert",
            "biased-mean-classifier",
            "classification",
            MODERNBERT
            | BIASES
            | {"classifier_pooling": "mean", "classifier_activation": "relu"}
            | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
            | {"local_attention": 5},
        ),
        Variant("modernbert", "biased-base", "base", MODERNBERT | BIASES),
    ],
}
VARIANTS = [variant for variants in ZOO.values() for variant in variants]
# Layers that share keys and values run on torch alone.
ON_ENGINES = [one for one in VARIANTS if not one.config.get("num_kv_shared_layers")]


def build(variant: Variant, seed: int, **overrides: Any) -> PreTrainedModel:
    """Return the random model in eval mode; `overrides` replace fields of its config."""
    torch.manual_seed(seed)
    # A config keeps, and completes in place, the dicts that it is given.
    fields = copy.deepcopy(dict(variant.config) | overrides)
    config = AutoConfig.for_model(variant.family, **fields)
    # Their grouped products do not exist in float64, and need widths of whole 16 bytes.
    config._experts_implementation = "eager"
    model: PreTrainedModel = AUTO_CLASSES[variant.task].from_config(config).eval()
    randomize(model)
    return model


def token_batch(variant: Variant, seed: int, length: int = LENGTH) -> torch.Tensor:
    """Return random token ids (2, length), none of them the padding token."""
    generator = torch.Generator().manual_seed(seed)
    padding: int = variant.config["pad_token_id"]
    shift = torch.randint(1, VOCABULARY, (2, length), generator=generator)
    return (padding + shift) % VOCABULARY


def padded_batch(variant: Variant, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and their mask, the second row padded on the right by a third."""
    ids = token_batch(variant, seed)
    mask = torch.ones_like(ids)
    mask[1, -LENGTH // 3 :] = 0
    return torch.where(mask == 1, ids, variant.config["pad_token_id"]), mask
