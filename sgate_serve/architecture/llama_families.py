"""The entries of decoders whose blocks follow Llama's."""

from collections.abc import Mapping
from dataclasses import replace

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BASE,
    CAUSAL_LM,
    CLASSIFICATION,
    DOWN,
    GATE,
    HIDDEN,
    KEY,
    LABEL_OUTPUTS,
    MLP,
    MLP_ROLES,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    VOCAB,
    Family,
    TaskHead,
)


def decoder_tasks(stem: str, classifier: str = "") -> Mapping[str, TaskHead]:
    """Return the heads of a decoder whose classes are named in transformers' usual way."""
    return {
        CAUSAL_LM: TaskHead(f"{stem}ForCausalLM", {"lm_head.weight": (VOCAB, HIDDEN)}),
        CLASSIFICATION: TaskHead(
            classifier or f"{stem}ForSequenceClassification",
            {"score.weight": (LABEL_OUTPUTS, HIDDEN)},
        ),
        BASE: TaskHead(f"{stem}Model"),
    }


LLAMA = Family(
    name="llama",
    config_class="LlamaConfig",
    tasks=decoder_tasks("Llama"),
    prefix="model",
    layer="model.layers.{}",
    linears={
        QUERY: "self_attn.q_proj",
        KEY: "self_attn.k_proj",
        VALUE: "self_attn.v_proj",
        OUTPUT: "self_attn.o_proj",
        GATE: "mlp.gate_proj",
        UP: "mlp.up_proj",
        DOWN: "mlp.down_proj",
    },
    biases={
        **dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
        **dict.fromkeys(MLP_ROLES, "mlp_bias"),
    },
    blocks={ATTENTION: ("self_attn",), MLP: ("mlp",)},
    norms={ATTENTION: "input_layernorm", MLP: "post_attention_layernorm"},
    outside={"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)},
    embedding="model.embed_tokens",
    final_norm="model.norm",
    keys={"norm_eps": "rms_norm_eps"},
    ignored_suffixes=("rotary_emb.inv_freq",),
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    config_class="MistralConfig",
    tasks=decoder_tasks("Mistral"),
    biases={},
    windows="always",
    divides_hidden_size=False,
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    config_class="Qwen2Config",
    tasks=decoder_tasks("Qwen2"),
    biases=dict.fromkeys((QUERY, KEY, VALUE), True),
    windows="switched",
    divides_hidden_size=False,
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    config_class="Qwen3Config",
    tasks=decoder_tasks("Qwen3"),
    biases=dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
)

SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    config_class="SmolLM3Config",
    tasks=decoder_tasks("SmolLM3"),
    windows="switched",
    has_unrotated_layers=True,
    divides_hidden_size=False,
)

GRANITE = replace(
    LLAMA,
    name="granite",
    config_class="GraniteConfig",
    tasks={
        CAUSAL_LM: replace(LLAMA.tasks[CAUSAL_LM], model_class="GraniteForCausalLM"),
        BASE: TaskHead("GraniteModel"),
    },
    has_multipliers=True,
    divides_hidden_size=False,
)

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    config_class="Starcoder2Config",
    tasks=decoder_tasks("Starcoder2"),
    linears={
        **{role: LLAMA.linears[role] for role in ATTENTION_ROLES},
        UP: "mlp.c_fc",
        DOWN: "mlp.c_proj",
    },
    biases=dict.fromkeys((*ATTENTION_ROLES, UP, DOWN), "use_bias"),
    outside={**LLAMA.outside, "model.norm.bias": (HIDDEN,)},
    norm="layer",
    norm_biases=True,
    windows="always",
    keys={"norm_eps": "norm_epsilon"},
    divides_hidden_size=False,
)

PHI3 = replace(
    LLAMA,
    name="phi3",
    config_class="Phi3Config",
    tasks=decoder_tasks("Phi3"),
    linears={
        **dict.fromkeys((QUERY, KEY, VALUE), "self_attn.qkv_proj"),
        OUTPUT: "self_attn.o_proj",
        **dict.fromkeys((GATE, UP), "mlp.gate_up_proj"),
        DOWN: "mlp.down_proj",
    },
    biases={},
    windows="always",
    has_stated_head_width=False,
    has_partial_rotation=True,
    rope_types={"su": "longrope", "yarn": "longrope"},
    divides_hidden_size=False,
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    config_class="Olmo2Config",
    tasks=decoder_tasks("Olmo2"),
    biases=dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
    residual="after",
    norms={},
    post_norms={ATTENTION: "post_attention_layernorm", MLP: "post_feedforward_layernorm"},
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    has_joint_head_norms=True,
    divides_hidden_size=False,
)

OLMO3 = replace(
    OLMO2,
    name="olmo3",
    config_class="Olmo3Config",
    tasks=decoder_tasks("Olmo3"),
    windows="typed",
    has_rope_by_type=True,
    # transformers' class reads `rope_theta` for layers without a window alone.
    fixed={"sliding_window_pattern": 4, "rope_local_base_freq": 500_000.0},
)
