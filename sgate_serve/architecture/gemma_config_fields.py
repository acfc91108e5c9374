"""The fields of transformers' config classes of Gemma's text models, as in `config_fields`."""

from sgate_serve.architecture.config_field import (
    DECODER,
    ConfigField,
    Fields,
    changed,
    nullable,
    without,
)
from sgate_serve.architecture.config_kinds import (
    ACTIVATION,
    DECIMAL,
    RATE,
    ROPE_BY_TYPE,
    SHARE,
    VISION,
)
from sgate_serve.json_fields import FLAG, SIZE, TEXTS, WHOLE

GEMMA2: Fields = {
    **changed(
        without(DECODER, "hidden_act"),
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        tie_word_embeddings=True,
    ),
    "head_dim": ConfigField(WHOLE, 256),
    "hidden_activation": ConfigField(ACTIVATION, "gelu_pytorch_tanh"),
    "attention_bias": ConfigField(FLAG, False),
    "attention_dropout": nullable(RATE, 0.0),
    "query_pre_attn_scalar": ConfigField(SIZE, 256),
    "sliding_window": nullable(SIZE, 4096),
    "layer_types": nullable(TEXTS),
    "final_logit_softcapping": nullable(DECIMAL, 30.0),
    "attn_logit_softcapping": nullable(DECIMAL, 50.0),
    "use_bidirectional_attention": nullable(FLAG),
}
GEMMA3: Fields = changed(
    GEMMA2,
    vocab_size=262_208,
    max_position_embeddings=131_072,
    final_logit_softcapping=None,
    attn_logit_softcapping=None,
    use_bidirectional_attention=False,
)
GEMMA4: Fields = {
    **changed(
        without(without(GEMMA3, "query_pre_attn_scalar"), "attn_logit_softcapping"),
        vocab_size=262_144,
        num_hidden_layers=30,
    ),
    "rope_parameters": nullable(ROPE_BY_TYPE),
    "sliding_window": ConfigField(SIZE, 512),
    "use_bidirectional_attention": nullable(VISION),
    "vocab_size_per_layer_input": ConfigField(SIZE, 262_144),
    "hidden_size_per_layer_input": ConfigField(WHOLE, 256),
    "attention_k_eq_v": ConfigField(FLAG, False),
    "num_kv_shared_layers": ConfigField(WHOLE, 0),
    "enable_moe_block": ConfigField(FLAG, False),
    "use_double_wide_mlp": ConfigField(FLAG, False),
    "num_experts": nullable(WHOLE),
    "top_k_experts": nullable(WHOLE),
    "moe_intermediate_size": nullable(WHOLE),
}
# Keys that are no field of the class and that its code takes all the same.
GEMMA4_KEYS: Fields = {
    "global_head_dim": ConfigField(SIZE, 512),
    "num_global_key_value_heads": nullable(SIZE),
    "partial_rotary_factor": nullable(SHARE),
}
