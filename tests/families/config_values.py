"""An unusual value for every field of every family's config class, and for keys besides."""

from typing import Any

from sgate_serve.architecture.families import FAMILIES
from tests.families.config_judge import BASES

LINEAR = {"rope_type": "linear", "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [2.0] * 4,
}
# Sizes and what else the forward follows.
FOLLOWED: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 48,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 48,
    "type_vocab_size": 3,
    "n_embd": 48,
    "n_inner": 20,
    "n_layer": 3,
    "n_head": 8,
    "n_positions": 48,
    "dim": 48,
    "hidden_dim": 20,
    "n_layers": 3,
    "n_heads": 8,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "activation": "relu",
    "activation_function": "relu",
    "rms_norm_eps": 0.5,
    "layer_norm_eps": 0.5,
    "layer_norm_epsilon": 0.5,
    "norm_epsilon": 0.5,
    "norm_eps": 0.5,
    "norm_bias": True,
    "use_bias": False,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "num_experts": 5,
    "num_local_experts": 5,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 0,
    "use_qk_norm": True,
    "num_experts_per_tok": 1,
    "top_k_experts": 1,
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 8,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 20,
    "norm_topk_prob": True,
    "swiglu_alpha": 0.7,
    "swiglu_limit": 0.3,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [0],
    "qkv_bias": False,
    "rope_theta": 7.0,
    "rope_parameters": {**LINEAR, "rope_theta": 50.0},
    "rope_scaling": LINEAR,
    "rope_local_base_freq": 7.0,
    "partial_rotary_factor": 0.5,
    "rotary_emb_base": 7.0,
    "rotary_pct": 0.25,
    "use_parallel_residual": False,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 10,
    "linear_conv_kernel_dim": 3,
    "full_attention_interval": 1,
    "sliding_window": 3,
    "use_sliding_window": False,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "no_rope_layers": [0, 1],
    "no_rope_layer_interval": 1,
    "sliding_window_pattern": 3,
    "local_attention": 6,
    "global_attn_every_n_layers": 1,
    "global_rope_theta": 7.0,
    "local_rope_theta": 7.0,
    "query_pre_attn_scalar": 5,
    "final_logit_softcapping": 2.5,
    "attn_logit_softcapping": 2.5,
    "embedding_multiplier": 3,
    "attention_multiplier": 0.5,
    "residual_multiplier": 0.5,
    "logits_scaling": 2,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": False,
    "pad_token_id": 4,
    "classifier_pooling": "mean",
    "classifier_bias": True,
    "classifier_activation": "relu",
    "num_labels": 4,
    "id2label": {"0": "no", "1": "yes"},
}
# Those of a head, which the config's default task may lack.
OF_LABELS = {"num_labels", "id2label"}
OF_HEADS = {"classifier_pooling", "classifier_bias", "classifier_activation"}
# Refused by name, in some families or in all.
REFUSED: dict[str, Any] = {
    "return_dict": False,
    "is_encoder_decoder": True,
    "chunk_size_feed_forward": 5,
    "is_decoder": True,
    "add_cross_attention": True,
    "use_bidirectional_attention": True,
    "configuration_files": ["config.4.0.0.json"],
    "transformers_weights": "other.safetensors",
    "text_config": {},
    "text_encoder": {},
    "decoder": {},
    "generator": {},
    "mlp_layer_types": ["dense", "dense"],
    "attribute_map": {},
    "sub_configs": {},
    "default_theta": 3.0,
    "default_rope_type": "linear",
    "_rope_type_labels": ["full_attention"],
    "is_causal": False,
    "attention_chunk_size": 4,
    "n_group": 2,
    "topk_group": 2,
    "num_mtp_layers": 2,
    "num_kv_shared_layers": 1,
}
# Without effect on inference in any family. Dropout is off then, and the weights are those stored.
WITHOUT_EFFECT: dict[str, Any] = {
    "transformers_version": "4.1",
    "architectures": None,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "torch_dtype": "float16",
    "label2id": {"no": 0},
    "problem_type": "regression",
    "initializer_range": 0.5,
    "bos_token_id": 4,
    "eos_token_id": [4, 5],
    "use_cache": False,
    "attention_dropout": 0.5,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "hidden_dropout_prob": 0.5,
    "attention_probs_dropout_prob": 0.5,
    "classifier_dropout": 0.5,
    "dropout": 0.5,
    "qa_dropout": 0.5,
    "seq_classif_dropout": 0.5,
    "hidden_dropout": 0.5,
    "residual_dropout": 0.5,
    "embedding_dropout": 0.5,
    "mlp_dropout": 0.5,
    "initializer_cutoff_factor": 0.5,
    "cls_token_id": 4,
    "sep_token_id": 4,
    "decoder_bias": False,
    "deterministic_flash_attn": True,
    "sparse_prediction": True,
    "sparse_pred_ignore_index": 4,
    "pretraining_tp": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
    "router_jitter_noise": 0.5,
    "num_nextn_predict_layers": 2,
    # Without the parts that they are about.
    "vocab_size_per_layer_input": 4,
    "use_double_wide_mlp": True,
    # Layers here use the first.
    "number_of_conv_states": 2,
    "reorder_and_upcast_attn": True,
    "sinusoidal_pos_embds": True,
    "summary_type": "mean",
    "summary_use_proj": False,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "summary_first_dropout": 0.5,
    # The length that scaled ropes start from; the default rope has none.
    "original_max_position_embeddings": 32,
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "auto_map": {"AutoConfig": "configuration.Other"},
    "gradient_checkpointing": True,
    "position_embedding_type": "relative_key",
    "output_cross_attentions": True,
    "pruned_heads": {"0": [1]},
    "tie_encoder_decoder": True,
    "vision_aspect_ratio": "pad",
    "vision_feature_layer": 3,
    "vision_feature_select_strategy": "full",
    "embedding_size": 5,
    "_sliding_window_pattern": 5,
    "no_such_key": 5,
}
UNUSUAL = {**FOLLOWED, **REFUSED, **WITHOUT_EFFECT}
# Where a family needs another value to notice.
OWN: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": {**LONGROPE, "rope_theta": 50.0}, "rope_scaling": LONGROPE},
    **{
        name: {"layer_types": ["full_attention", "linear_attention"], "norm_topk_prob": False}
        for name in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
    },
    "qwen2_moe": {"layer_types": ["full_attention", "sliding_attention"]},
    "glm4_moe": {"partial_rotary_factor": 0.25, "norm_topk_prob": False},
    "gemma2": {"layer_types": ["full_attention", "sliding_attention"]},
    "gemma3_text": {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 3.0}},
    },
    "gemma4_text": {
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {**LINEAR, "rope_theta": 9.0},
            "sliding_attention": {"rope_theta": 3.0},
        },
    },
    "gpt_neox": {"attention_bias": False},
    "gpt_oss": {"attention_bias": False, "layer_types": ["full_attention", "sliding_attention"]},
    "modernbert": {
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 3.0}},
    },
    "olmo3": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 3.0}},
    },
}
_EVERYWHERE = {
    *("return_dict", "is_encoder_decoder", "configuration_files", "transformers_weights"),
    *("text_config", "text_encoder", "decoder", "generator", "mlp_layer_types", "attribute_map"),
    *("sub_configs", "default_theta", "default_rope_type", "_rope_type_labels"),
}
_DECODERS = {"is_causal", "attention_chunk_size", "num_kv_shared_layers"}


def refused_in(family: str) -> set[str]:
    """Return the keys whose unusual value a family's config must not have."""
    entry = FAMILIES[family]
    refused = _EVERYWHERE | (set() if entry.is_encoder else _DECODERS) | set(entry.refused)
    # A second name for a key that the config has already.
    refused |= {key for pair in entry.aliases.items() for key in pair} - BASES[family].keys()
    refused |= {"n_group", "topk_group", "use_bidirectional_attention"} & set(entry.fields)
    if entry.is_rotary and "head_dim" not in entry.fields:
        refused |= {"head_dim"}
    if entry.windows in ("never", "always") and entry.recurrence is None:
        refused |= {"layer_types"}
    return refused if entry.is_rotary else refused | {"rope_parameters", "rope_scaling"}


def on_by_default(family: str) -> set[str]:
    """Return the refused fields that a family's config must switch off."""
    entry = FAMILIES[family]
    return {key for key in entry.refused if key in entry.fields and entry.fields[key].default}


def followed_in(family: str) -> set[str]:
    """Return the keys whose unusual value changes what a family's model computes."""
    entry = FAMILIES[family]
    followed = set(FOLLOWED) & set(entry.fields) - refused_in(family) - set(entry.fixed)
    if entry.is_rotary:
        followed -= {"max_position_embeddings"}
    if not entry.has_partial_rotation:
        followed -= {"partial_rotary_factor"}
    if not entry.has_padded_positions:
        followed -= {"pad_token_id"}
    # These belong to a head: `tie_word_embeddings` to that of a causal LM.
    followed -= OF_LABELS | OF_HEADS
    if entry.mixture is None:
        followed -= {"num_experts", "moe_intermediate_size"}
    return followed - {"tie_word_embeddings"} if entry.is_encoder else followed


def unusual(family: str, key: str) -> Any:
    value = OWN.get(family, {}).get(key, UNUSUAL[key])
    if key == "tie_word_embeddings":
        return not BASES[family].get(key, FAMILIES[family].fields[key].default)
    return value
