"""The fields of transformers' config classes: the values that each accepts, and its default.

A config.json means what transformers reads in it, so this table repeats the classes of transformers
5.19; `tests/families/test_config_classes.py` compares it with the installed ones. It may refuse
values that a class accepts, never the reverse.
"""

from collections.abc import Mapping

from sgate_serve.architecture.config_field import (
    DECODER,
    ConfigField,
    Fields,
    changed,
    nullable,
    without,
)
from sgate_serve.architecture.config_kinds import (
    CLASS_NAMES,
    DECIMAL,
    DTYPE,
    FRACTION,
    INTEGER,
    KERNEL,
    RATE,
    SHARE,
    STRATEGY,
    SWITCHES,
)
from sgate_serve.architecture.encoder_config_fields import BERT, DISTILBERT, MODERNBERT, ROBERTA
from sgate_serve.architecture.gemma_config_fields import GEMMA2, GEMMA3, GEMMA4, GEMMA4_KEYS
from sgate_serve.architecture.gpt_config_fields import GPT2, GPT_NEOX
from sgate_serve.architecture.hybrid_fields import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from sgate_serve.architecture.mixture_fields import GLM4_MOE, GPT_OSS, QWEN_EXPERTS
from sgate_serve.json_fields import FLAG, OBJECT, POSITIVE, SIZE, TEXTS, WHOLE

_LLAMA: Fields = {
    **changed(
        DECODER,
        vocab_size=32000,
        intermediate_size=11008,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "num_key_value_heads": nullable(WHOLE),
    "head_dim": nullable(WHOLE),
    "attention_bias": ConfigField(FLAG, False),
    "mlp_bias": ConfigField(FLAG, False),
    "attention_dropout": nullable(RATE, 0.0),
    "pretraining_tp": nullable(INTEGER, 1),
}
_MISTRAL: Fields = {
    **changed(
        DECODER,
        vocab_size=32000,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "head_dim": nullable(WHOLE),
    "sliding_window": nullable(SIZE, 4096),
}
_QWEN2: Fields = {
    **changed(DECODER, vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768),
    "num_key_value_heads": nullable(WHOLE, 32),
    "use_sliding_window": ConfigField(FLAG, False),
    "sliding_window": nullable(SIZE, 4096),
    "max_window_layers": ConfigField(WHOLE, 28),
    "layer_types": nullable(TEXTS),
}
_QWEN3: Fields = {
    **_QWEN2,
    "head_dim": ConfigField(WHOLE, 128),
    "attention_bias": ConfigField(FLAG, False),
}
_MIXTRAL: Fields = {
    **changed(_MISTRAL, rms_norm_eps=1e-5, sliding_window=None),
    "num_experts_per_tok": ConfigField(SIZE, 2),
    "num_local_experts": ConfigField(SIZE, 8),
    "output_router_logits": ConfigField(FLAG, False),
    "router_aux_loss_coef": ConfigField(DECIMAL, 0.001),
    "router_jitter_noise": ConfigField(FRACTION, 0.0),
}
_QWEN2_MOE: Fields = {
    **changed(
        {**_QWEN2, **QWEN_EXPERTS},
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        moe_intermediate_size=1408,
        num_experts_per_tok=4,
        num_experts=60,
    ),
    # Saved as 0 where it is switched off.
    "sliding_window": nullable(WHOLE, 4096),
    "shared_expert_intermediate_size": ConfigField(SIZE, 5632),
    "qkv_bias": ConfigField(FLAG, True),
}
_QWEN3_MOE: Fields = {
    **changed(
        {**without(without(_QWEN2, "max_window_layers"), "layer_types"), **QWEN_EXPERTS},
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_key_value_heads=4,
    ),
    "num_key_value_heads": ConfigField(WHOLE, 4),
    "attention_bias": ConfigField(FLAG, False),
}
_SMOLLM3: Fields = {
    **changed(
        DECODER,
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        max_position_embeddings=32768,
        pad_token_id=128004,
        bos_token_id=128000,
        eos_token_id=128001,
        tie_word_embeddings=True,
    ),
    "num_key_value_heads": nullable(WHOLE, 4),
    "use_sliding_window": ConfigField(FLAG, False),
    "sliding_window": nullable(SIZE),
    "no_rope_layers": nullable(SWITCHES),
    "no_rope_layer_interval": ConfigField(SIZE, 4),
    "layer_types": nullable(TEXTS),
    "attention_bias": ConfigField(FLAG, False),
    "mlp_bias": ConfigField(FLAG, False),
}
_GRANITE: Fields = {
    **changed(
        DECODER,
        vocab_size=32000,
        intermediate_size=11008,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "num_key_value_heads": nullable(WHOLE),
    "attention_bias": ConfigField(FLAG, False),
    "mlp_bias": ConfigField(FLAG, False),
    "embedding_multiplier": ConfigField(POSITIVE, 1.0),
    "logits_scaling": ConfigField(POSITIVE, 1.0),
    "residual_multiplier": ConfigField(POSITIVE, 1.0),
    "attention_multiplier": ConfigField(POSITIVE, 1.0),
}
_STARCODER2: Fields = {
    **changed(
        without(DECODER, "rms_norm_eps"),
        vocab_size=49152,
        hidden_size=3072,
        intermediate_size=12288,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=4096,
        initializer_range=0.018042,
        bos_token_id=50256,
        eos_token_id=50256,
        tie_word_embeddings=True,
    ),
    "norm_epsilon": ConfigField(DECIMAL, 1e-5),
    "sliding_window": nullable(SIZE),
    "residual_dropout": ConfigField(RATE, 0.0),
    "embedding_dropout": ConfigField(RATE, 0.0),
    "use_bias": ConfigField(FLAG, True),
}
_PHI3: Fields = {
    **changed(
        DECODER,
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=32000,
        bos_token_id=1,
        eos_token_id=32000,
    ),
    "num_key_value_heads": nullable(WHOLE),
    "resid_pdrop": ConfigField(RATE, 0.0),
    "embd_pdrop": ConfigField(RATE, 0.0),
    "original_max_position_embeddings": ConfigField(SIZE, 4096),
    "sliding_window": nullable(SIZE),
}
_OLMO2: Fields = {
    **changed(
        DECODER,
        vocab_size=50304,
        intermediate_size=11008,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        pad_token_id=1,
        eos_token_id=50279,
    ),
    "num_key_value_heads": nullable(WHOLE),
    "attention_bias": ConfigField(FLAG, False),
}
_OLMO3: Fields = {
    **_OLMO2,
    "sliding_window": nullable(SIZE, 4096),
    "layer_types": nullable(TEXTS),
}

CONFIG_CLASSES: Mapping[str, Fields] = {
    "LlamaConfig": _LLAMA,
    "MistralConfig": _MISTRAL,
    "Qwen2Config": _QWEN2,
    "Qwen3Config": _QWEN3,
    "MixtralConfig": _MIXTRAL,
    "Qwen2MoeConfig": _QWEN2_MOE,
    "Qwen3MoeConfig": _QWEN3_MOE,
    "Qwen3_5TextConfig": QWEN3_5,
    "Qwen3_5MoeTextConfig": QWEN3_5_MOE,
    "Qwen3NextConfig": QWEN3_NEXT,
    "Glm4MoeConfig": GLM4_MOE,
    "GptOssConfig": GPT_OSS,
    "SmolLM3Config": _SMOLLM3,
    "GraniteConfig": _GRANITE,
    "Starcoder2Config": _STARCODER2,
    "Phi3Config": _PHI3,
    "Gemma2Config": GEMMA2,
    "Gemma3TextConfig": GEMMA3,
    "Gemma4TextConfig": GEMMA4,
    "Olmo2Config": _OLMO2,
    "Olmo3Config": _OLMO3,
    "GPT2Config": GPT2,
    "GPTNeoXConfig": GPT_NEOX,
    "BertConfig": BERT,
    "RobertaConfig": ROBERTA,
    "DistilBertConfig": DISTILBERT,
    "ModernBertConfig": MODERNBERT,
}

# Keys that are no field of a class and that its code takes all the same.
_EVERYWHERE: Fields = {
    "num_labels": ConfigField(SIZE),
    "torch_dtype": nullable(DTYPE),
    "output_attentions": ConfigField(FLAG, False),
    "is_causal": ConfigField(FLAG, True),
    # Without effect, and checked by the forward of every model.
    "vision_feature_select_strategy": nullable(STRATEGY),
    "auto_map": ConfigField(CLASS_NAMES),
    "attn_implementation": nullable(KERNEL),
    "_attn_implementation": nullable(KERNEL),
}
_ROTARY: Fields = {
    **_EVERYWHERE,
    "rope_theta": nullable(POSITIVE, 10_000.0),
    "rope_scaling": nullable(OBJECT),
    "partial_rotary_factor": nullable(SHARE),
    "original_max_position_embeddings": nullable(SIZE),
}
EXTRA_KEYS: Mapping[str, Fields] = {
    **dict.fromkeys(CONFIG_CLASSES, _EVERYWHERE),
    **dict.fromkeys(("LlamaConfig", "MistralConfig", "Qwen3Config", "Gemma2Config"), _ROTARY),
    **{
        name: {**_ROTARY, "head_dim": ConfigField(WHOLE)}
        for name in (
            *("Qwen2Config", "GraniteConfig", "Starcoder2Config", "Qwen2MoeConfig"),
            "Olmo2Config",
        )
    },
    "MixtralConfig": {
        **changed(_ROTARY, rope_theta=1_000_000.0),
        "num_experts": ConfigField(SIZE),
    },
    "Qwen3MoeConfig": {
        **_ROTARY,
        "head_dim": ConfigField(WHOLE),
        "num_local_experts": ConfigField(SIZE),
    },
    "Glm4MoeConfig": {
        **changed(_ROTARY, partial_rotary_factor=0.5),
        "head_dim": ConfigField(WHOLE),
        "num_local_experts": ConfigField(SIZE),
        "num_nextn_predict_layers": nullable(WHOLE),
    },
    "GptOssConfig": {
        **changed(_ROTARY, rope_theta=150_000.0),
        "num_experts": ConfigField(SIZE),
    },
    **{
        name: {
            **changed(_ROTARY, partial_rotary_factor=0.25),
            "full_attention_interval": ConfigField(SIZE, 4),
        }
        for name in ("Qwen3_5TextConfig", "Qwen3_5MoeTextConfig", "Qwen3NextConfig")
    },
    "SmolLM3Config": {
        **changed(_ROTARY, rope_theta=2_000_000.0),
        "head_dim": ConfigField(WHOLE),
    },
    "Phi3Config": {
        **{key: field for key, field in _ROTARY.items() if key not in _PHI3},
        "partial_rotary_factor": ConfigField(SHARE, 1.0),
        "head_dim": ConfigField(WHOLE),
    },
    "Olmo3Config": {
        **changed(_ROTARY, rope_theta=500_000.0),
        "head_dim": ConfigField(WHOLE),
    },
    "GPTNeoXConfig": {
        **_EVERYWHERE,
        "rope_scaling": nullable(OBJECT),
        "rotary_emb_base": ConfigField(POSITIVE, 10_000.0),
        "rotary_pct": ConfigField(SHARE, 0.25),
        "original_max_position_embeddings": nullable(SIZE),
    },
    "ModernBertConfig": {
        **_EVERYWHERE,
        "global_attn_every_n_layers": ConfigField(SIZE, 3),
        "global_rope_theta": ConfigField(POSITIVE, 160_000.0),
        "local_rope_theta": ConfigField(POSITIVE, 10_000.0),
        # Half of `local_attention`, which it replaces.
        "sliding_window": ConfigField(SIZE),
        "partial_rotary_factor": nullable(SHARE),
        "original_max_position_embeddings": nullable(SIZE),
    },
    "Gemma3TextConfig": {
        **changed(_ROTARY, rope_theta=1_000_000.0),
        "rope_local_base_freq": nullable(POSITIVE, 10_000.0),
        "sliding_window_pattern": ConfigField(SIZE, 6),
    },
    "Gemma4TextConfig": {**_EVERYWHERE, **GEMMA4_KEYS},
}
