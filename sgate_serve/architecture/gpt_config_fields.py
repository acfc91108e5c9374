"""The fields of transformers' config classes of GPT-2 and GPT-NeoX, as in `config_fields`."""

from sgate_serve.architecture.config_field import (
    DECODER,
    EVERY,
    ConfigField,
    Fields,
    changed,
    nullable,
    without,
)
from sgate_serve.architecture.config_kinds import ACTIVATION, DECIMAL, LAYERS, RATE
from sgate_serve.json_fields import FLAG, SIZE, TEXT, WHOLE

GPT2: Fields = {
    **changed(
        EVERY, vocab_size=50257, bos_token_id=50256, eos_token_id=50256, tie_word_embeddings=True
    ),
    "n_positions": ConfigField(SIZE, 1024),
    "n_embd": ConfigField(SIZE, 768),
    "n_layer": ConfigField(LAYERS, 12),
    "n_head": ConfigField(WHOLE, 12),
    "n_inner": nullable(WHOLE),
    "activation_function": ConfigField(ACTIVATION, "gelu_new"),
    "resid_pdrop": ConfigField(RATE, 0.1),
    "embd_pdrop": ConfigField(RATE, 0.1),
    "attn_pdrop": ConfigField(RATE, 0.1),
    "layer_norm_epsilon": ConfigField(DECIMAL, 1e-5),
    "summary_type": ConfigField(TEXT, "cls_index"),
    "summary_use_proj": ConfigField(FLAG, True),
    "summary_activation": nullable(TEXT),
    "summary_proj_to_labels": ConfigField(FLAG, True),
    "summary_first_dropout": ConfigField(RATE, 0.1),
    "scale_attn_weights": ConfigField(FLAG, True),
    "use_cache": ConfigField(FLAG, True),
    "scale_attn_by_inverse_layer_idx": ConfigField(FLAG, False),
    "reorder_and_upcast_attn": ConfigField(FLAG, False),
    "add_cross_attention": ConfigField(FLAG, False),
}
GPT_NEOX: Fields = {
    **changed(
        without(without(DECODER, "num_key_value_heads"), "rms_norm_eps"),
        vocab_size=50432,
        hidden_size=6144,
        intermediate_size=24576,
        num_hidden_layers=44,
        num_attention_heads=64,
        hidden_act="gelu",
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "attention_bias": ConfigField(FLAG, True),
    "hidden_dropout": ConfigField(RATE, 0.0),
    "classifier_dropout": ConfigField(RATE, 0.1),
    "layer_norm_eps": ConfigField(DECIMAL, 1e-5),
    "use_parallel_residual": ConfigField(FLAG, True),
    "is_decoder": ConfigField(FLAG, False),
}
