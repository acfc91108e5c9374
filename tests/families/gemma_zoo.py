"""The variants of Gemma in the zoo."""

from collections.abc import Mapping

from tests.families.variant import Variant
from tests.families.zoo_configs import GEMMA, GEMMA4, GEMMA4_EXPERTS, GEMMA4_SHARED

GEMMA_ZOO: Mapping[str, list[Variant]] = {
    "gemma2": [
        Variant("gemma2", "soft-capped", "causal-lm", GEMMA | {"attn_logit_softcapping": 3.0}),
        Variant(
            "gemma2",
            "biased-uncapped",
            "causal-lm",
            GEMMA
            | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
            | {"attention_bias": True, "tie_word_embeddings": False}
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        ),
    ],
    "gemma3_text": [
        Variant("gemma3_text", "pattern", "causal-lm", GEMMA | {"sliding_window_pattern": 3}),
        Variant(
            "gemma3_text",
            "biased-untied",
            "causal-lm",
            GEMMA
            | {"final_logit_softcapping": None, "attention_bias": True}
            | {"tie_word_embeddings": False}
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        ),
    ],
    "gemma4_text": [
        Variant("gemma4_text", "keys-are-values", "causal-lm", GEMMA4),
        Variant(
            "gemma4_text",
            "biased-untied",
            "causal-lm",
            GEMMA4
            | {"final_logit_softcapping": None, "attention_bias": True}
            | {"attention_k_eq_v": False, "tie_word_embeddings": False}
            | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        ),
        Variant("gemma4_text", "biased-base", "base", GEMMA4 | {"attention_bias": True}),
        Variant("gemma4_text", "experts", "causal-lm", GEMMA4_EXPERTS),
        Variant("gemma4_text", "shared-keys-inputs", "causal-lm", GEMMA4_SHARED),
        Variant(
            "gemma4_text",
            "biased-shared-keys",
            "causal-lm",
            GEMMA4_SHARED
            | {"attention_bias": True, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0},
        ),
    ],
}
