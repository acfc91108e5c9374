"""Small configs, in transformers' fields, that the variants of the zoo are made of."""

from typing import Any

VOCABULARY = 97
# Shorter than a batch, so that it shows.
WINDOW = 5

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    # Wide enough that outputs differ clearly.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "num_labels": 3,
}
DECODER: dict[str, Any] = COMMON | {
    "hidden_size": 48,
    "intermediate_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
WITH_HEAD_DIM = DECODER | {"head_dim": 16}
GEMMA = WITH_HEAD_DIM | {
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 10,
    "sliding_window": WINDOW,
    "final_logit_softcapping": 4.0,
}
# Heads of layers without a window are wider, and fewer of them have keys, which are values too.
GEMMA4 = {key: value for key, value in GEMMA.items() if key != "query_pre_attn_scalar"} | {
    "global_head_dim": 24,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
GEMMA4_EXPERTS = GEMMA4 | {"enable_moe_block": True, "moe_intermediate_size": 16}
# Norms over outputs that are nearly zero would show the rounding of each engine.
GEMMA4_EXPERTS |= {"num_experts": 5, "top_k_experts": 2, "rms_norm_eps": 1e-3}
# Layer 3 reads the keys and values of layer 2, and layer 4 those of layer 1.
GEMMA4_SHARED = GEMMA4 | {"num_hidden_layers": 5, "num_kv_shared_layers": 2}
# Norms over inputs that are nearly zero would show the rounding of each engine.
GEMMA4_SHARED |= {"hidden_size_per_layer_input": 12, "rms_norm_eps": 1e-3}
GEMMA4_SHARED |= {"vocab_size_per_layer_input": VOCABULARY}
GEMMA4_SHARED |= {"use_double_wide_mlp": True, "attention_k_eq_v": False}
GEMMA4_SHARED |= {
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention"),
        *("sliding_attention", "full_attention"),
    ]
}
# Two heads attend for each KV head, and in recurrent layers four values share a key.
HYBRID: dict[str, Any] = DECODER | {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 8,
    # Norms over outputs that are nearly zero would show the rounding of each engine.
    "rms_norm_eps": 1e-3,
}
SMOLLM3 = DECODER | {"no_rope_layer_interval": 2}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.5,
}
# The grouped products of transformers need widths of whole 16 bytes.
EXPERTS: dict[str, Any] = DECODER | {"intermediate_size": 32}
EXPERTS |= {"num_experts": 5, "num_experts_per_tok": 2}
QWEN_EXPERTS = EXPERTS | {"moe_intermediate_size": 16, "mlp_only_layers": [1]}
GLM_EXPERTS = EXPERTS | {"moe_intermediate_size": 16, "head_dim": 16, "use_qk_norm": True}
GLM_EXPERTS |= {"n_routed_experts": GLM_EXPERTS.pop("num_experts"), "routed_scaling_factor": 2.5}
GPT_OSS = EXPERTS | {"num_local_experts": EXPERTS["num_experts"], "head_dim": 16}
GPT_OSS = {key: value for key, value in GPT_OSS.items() if key != "num_experts"}
GPT_OSS |= {"sliding_window": WINDOW}
HYBRID_EXPERTS = {key: value for key, value in HYBRID.items() if key != "intermediate_size"} | {
    **{key: EXPERTS[key] for key in ("num_experts", "num_experts_per_tok")},
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 18,
    "full_attention_interval": 2,
    "tie_word_embeddings": True,
}
HYBRID_LONE_CHOICE = HYBRID_EXPERTS | {"num_experts_per_tok": 1, "attention_bias": True}
HYBRID_LONE_CHOICE |= {"tie_word_embeddings": False}
HYBRID_SPARSE = HYBRID_EXPERTS | {"mlp_only_layers": [0], "intermediate_size": 30}
HYBRID_SPARSE |= {"linear_num_value_heads": 4, "attention_bias": True, "norm_topk_prob": False}
# Units reach such a limit.
CLAMPED: dict[str, Any] = {"swiglu_limit": 0.8, "swiglu_alpha": 1.2}
GPT2: dict[str, Any] = COMMON | {
    "n_embd": 48,
    "n_inner": 30,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
}
# Rotates 4 of 16 dimensions, or 8.
NEOX: dict[str, Any] = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ENCODER: dict[str, Any] = COMMON | {
    "hidden_size": 48,
    "intermediate_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DISTILBERT: dict[str, Any] = COMMON | {
    "dim": 48,
    "hidden_dim": 30,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
MODERNBERT = ENCODER | {"num_hidden_layers": 3, "global_attn_every_n_layers": 2}
# To each side as wide as the window of a decoder.
MODERNBERT |= {"local_attention": 2 * WINDOW, "cls_token_id": None, "sep_token_id": None}
BIASES: dict[str, Any] = dict.fromkeys(
    ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True
)
# Rotates 6 of 12 dimensions, and by the long factors once a batch is longer than 6.
LONGROPE = {
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 6,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.2, 1.5],
        "long_factor": [1.1, 2.0, 4.0],
    },
}
# Layers with a window rotate by other frequencies than those without.
YARN = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
GPT_OSS_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
