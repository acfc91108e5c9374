"""The fields of transformers' config classes that only families with mixtures of experts have."""

from sgate_serve.architecture.config_field import DECODER, ConfigField, Fields, changed, nullable
from sgate_serve.architecture.config_kinds import DECIMAL, LAYER_NUMBERS, LONE_GROUP, RATE
from sgate_serve.json_fields import FLAG, SIZE, TEXTS, WHOLE

ROUTED_EXPERTS: Fields = {
    "moe_intermediate_size": ConfigField(SIZE, 768),
    "num_experts_per_tok": ConfigField(SIZE, 8),
    "num_experts": ConfigField(SIZE, 128),
    "output_router_logits": ConfigField(FLAG, False),
    "router_aux_loss_coef": ConfigField(DECIMAL, 0.001),
}
QWEN_EXPERTS: Fields = {
    **ROUTED_EXPERTS,
    "decoder_sparse_step": ConfigField(SIZE, 1),
    "norm_topk_prob": ConfigField(FLAG, False),
    "mlp_only_layers": nullable(LAYER_NUMBERS),
}
GLM4_MOE: Fields = {
    **changed(
        DECODER,
        vocab_size=151552,
        intermediate_size=10944,
        num_hidden_layers=46,
        num_attention_heads=96,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
    ),
    "attention_bias": ConfigField(FLAG, False),
    "attention_dropout": ConfigField(RATE, 0.0),
    "moe_intermediate_size": ConfigField(SIZE, 1408),
    "num_experts_per_tok": ConfigField(SIZE, 8),
    "output_router_logits": ConfigField(FLAG, False),
    "n_shared_experts": ConfigField(SIZE, 1),
    "n_routed_experts": ConfigField(SIZE, 128),
    "routed_scaling_factor": ConfigField(DECIMAL, 1.0),
    "n_group": ConfigField(LONE_GROUP, 1),
    "topk_group": ConfigField(LONE_GROUP, 1),
    "first_k_dense_replace": ConfigField(WHOLE, 1),
    "norm_topk_prob": ConfigField(FLAG, True),
    "use_qk_norm": ConfigField(FLAG, False),
    "num_mtp_layers": ConfigField(WHOLE, 1),
}
GPT_OSS: Fields = {
    **changed(
        DECODER,
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
    ),
    "head_dim": ConfigField(WHOLE, 64),
    "attention_bias": ConfigField(FLAG, True),
    "sliding_window": nullable(SIZE, 128),
    "layer_types": nullable(TEXTS),
    "num_local_experts": ConfigField(SIZE, 128),
    "num_experts_per_tok": ConfigField(SIZE, 4),
    "swiglu_alpha": ConfigField(DECIMAL, 1.702),
    "swiglu_limit": ConfigField(DECIMAL, 7.0),
    "output_router_logits": ConfigField(FLAG, False),
    "router_aux_loss_coef": ConfigField(DECIMAL, 0.001),
}
