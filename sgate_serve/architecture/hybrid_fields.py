"""The fields of config classes whose models have recurrent layers; see `config_fields`."""

from sgate_serve.architecture.config_field import (
    DECODER,
    ConfigField,
    Fields,
    changed,
    nullable,
    without,
)
from sgate_serve.architecture.mixture_fields import QWEN_EXPERTS, ROUTED_EXPERTS
from sgate_serve.json_fields import FLAG, SIZE, TEXTS, WHOLE

QWEN3_5: Fields = {
    **changed(
        DECODER,
        vocab_size=248320,
        intermediate_size=12288,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    ),
    "head_dim": ConfigField(WHOLE, 256),
    "attention_bias": ConfigField(FLAG, False),
    "linear_conv_kernel_dim": ConfigField(SIZE, 4),
    "linear_key_head_dim": ConfigField(SIZE, 128),
    "linear_value_head_dim": ConfigField(SIZE, 128),
    "linear_num_key_heads": ConfigField(SIZE, 16),
    "linear_num_value_heads": ConfigField(SIZE, 32),
    "layer_types": nullable(TEXTS),
}
QWEN3_5_MOE: Fields = {
    **changed(
        {**without(QWEN3_5, "intermediate_size"), **ROUTED_EXPERTS},
        hidden_size=2048,
        num_hidden_layers=40,
        num_key_value_heads=2,
        moe_intermediate_size=512,
        num_experts=256,
    ),
    "shared_expert_intermediate_size": ConfigField(SIZE, 512),
}
QWEN3_NEXT: Fields = {
    **changed(
        {**QWEN3_5, **QWEN_EXPERTS},
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=48,
        num_key_value_heads=2,
        moe_intermediate_size=512,
        num_experts_per_tok=10,
        num_experts=512,
        norm_topk_prob=True,
    ),
    "shared_expert_intermediate_size": ConfigField(SIZE, 512),
}
