"""The table of supported families, one entry each: decoders here, encoders beside."""

from collections.abc import Mapping
from dataclasses import replace

from sgate_serve.architecture.encoder_families import BERT, DISTILBERT, MODERNBERT, ROBERTA
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
    POSITIONS,
    QUERY,
    UP,
    VALUE,
    VOCAB,
    Family,
    Mixture,
    TaskHead,
)


def _decoder_tasks(stem: str, classifier: str = "") -> Mapping[str, TaskHead]:
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
    tasks=_decoder_tasks("Llama"),
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
    tasks=_decoder_tasks("Mistral"),
    biases={},
    windows="always",
    divides_hidden_size=False,
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    config_class="Qwen2Config",
    tasks=_decoder_tasks("Qwen2"),
    biases=dict.fromkeys((QUERY, KEY, VALUE), True),
    windows="switched",
    divides_hidden_size=False,
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    config_class="Qwen3Config",
    tasks=_decoder_tasks("Qwen3"),
    biases=dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
)

SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    config_class="SmolLM3Config",
    tasks=_decoder_tasks("SmolLM3"),
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
    tasks=_decoder_tasks("Starcoder2"),
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

_EXPERTS = Mixture(
    router="mlp.gate",
    expert="mlp.experts.{}",
    linears={GATE: "gate_proj", UP: "up_proj", DOWN: "down_proj"},
    normalizes="norm_topk_prob",
)

MIXTRAL = replace(
    MISTRAL,
    name="mixtral",
    config_class="MixtralConfig",
    tasks=_decoder_tasks("Mixtral"),
    keys={**MISTRAL.keys, "num_experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    blocks={ATTENTION: ("self_attn",), MLP: ("block_sparse_moe",)},
    mixture=Mixture(
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{}",
        linears={GATE: "w1", UP: "w3", DOWN: "w2"},
        normalizes=True,
        units="intermediate_size",
        renames={"block_sparse_moe": "mlp"},
    ),
)

QWEN2_MOE = replace(
    QWEN2,
    name="qwen2_moe",
    config_class="Qwen2MoeConfig",
    tasks=_decoder_tasks("Qwen2Moe"),
    biases=dict.fromkeys((QUERY, KEY, VALUE), "qkv_bias"),
    windows="alternating",
    mixture=replace(_EXPERTS, shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
)

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    config_class="Qwen3MoeConfig",
    tasks=_decoder_tasks("Qwen3Moe"),
    windows="always",
    aliases={"num_experts": "num_local_experts"},
    mixture=_EXPERTS,
)

GLM4_MOE = replace(
    LLAMA,
    name="glm4_moe",
    config_class="Glm4MoeConfig",
    tasks={
        CAUSAL_LM: replace(LLAMA.tasks[CAUSAL_LM], model_class="Glm4MoeForCausalLM"),
        BASE: TaskHead("Glm4MoeModel"),
    },
    biases=dict.fromkeys((QUERY, KEY, VALUE), "attention_bias"),
    head_norms=QWEN3.head_norms,
    has_head_norms="use_qk_norm",
    has_partial_rotation=True,
    divides_hidden_size=False,
    keys={**LLAMA.keys, "num_experts": "n_routed_experts"},
    aliases={
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
    },
    mixture=replace(
        _EXPERTS,
        shared="mlp.shared_experts",
        correction="mlp.gate.e_score_correction_bias",
        # It adds up the two best of each group of experts.
        least_experts=2,
        shared_multiple="n_shared_experts",
    ),
)

PHI3 = replace(
    LLAMA,
    name="phi3",
    config_class="Phi3Config",
    tasks=_decoder_tasks("Phi3"),
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

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    config_class="Gemma2Config",
    tasks=_decoder_tasks("Gemma2"),
    biases=dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
    residual="sandwich",
    norms={ATTENTION: "input_layernorm", MLP: "pre_feedforward_layernorm"},
    post_norms={ATTENTION: "post_attention_layernorm", MLP: "post_feedforward_layernorm"},
    norm_offset=1.0,
    scales_embeddings=True,
    overflows_in_fp16=True,
    windows="typed",
    keys={"norm_eps": "rms_norm_eps", "hidden_act": "hidden_activation"},
    fixed={"sliding_window_pattern": 2},
    refused=("use_bidirectional_attention",),
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3_text",
    config_class="Gemma3TextConfig",
    tasks={
        **_decoder_tasks("Gemma3", "Gemma3TextForSequenceClassification"),
        BASE: TaskHead("Gemma3TextModel"),
    },
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    has_rope_by_type=True,
    # transformers' Gemma 3 accepts the cap and ignores it, so which model is meant is unknown.
    refused=("use_bidirectional_attention", "attn_logit_softcapping"),
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    config_class="Olmo2Config",
    tasks=_decoder_tasks("Olmo2"),
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
    tasks=_decoder_tasks("Olmo3"),
    windows="typed",
    has_rope_by_type=True,
    # transformers' class reads `rope_theta` for layers without a window alone.
    fixed={"sliding_window_pattern": 4, "rope_local_base_freq": 500_000.0},
)

GPT2 = Family(
    name="gpt2",
    config_class="GPT2Config",
    tasks={
        CAUSAL_LM: TaskHead("GPT2LMHeadModel", {"lm_head.weight": (VOCAB, HIDDEN)}),
        CLASSIFICATION: TaskHead(
            "GPT2ForSequenceClassification", {"score.weight": (LABEL_OUTPUTS, HIDDEN)}
        ),
        BASE: TaskHead("GPT2Model"),
    },
    prefix="transformer",
    layer="transformer.h.{}",
    linears={
        **dict.fromkeys((QUERY, KEY, VALUE), "attn.c_attn"),
        OUTPUT: "attn.c_proj",
        UP: "mlp.c_fc",
        DOWN: "mlp.c_proj",
    },
    biases=dict.fromkeys((*ATTENTION_ROLES, UP, DOWN), True),
    blocks={ATTENTION: ("attn",), MLP: ("mlp",)},
    norms={ATTENTION: "ln_1", MLP: "ln_2"},
    outside={
        "transformer.wte.weight": (VOCAB, HIDDEN),
        "transformer.wpe.weight": (POSITIONS, HIDDEN),
        "transformer.ln_f.weight": (HIDDEN,),
        "transformer.ln_f.bias": (HIDDEN,),
    },
    embedding="transformer.wte",
    position_table="transformer.wpe",
    final_norm="transformer.ln_f",
    norm="layer",
    norm_biases=True,
    has_stated_head_width=False,
    has_kv_heads=False,
    is_transposed=True,
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "norm_eps": "layer_norm_epsilon",
    },
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    refused=("add_cross_attention",),
    has_padding_row=False,
    ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
)

GPT_NEOX = Family(
    name="gpt_neox",
    config_class="GPTNeoXConfig",
    tasks=_decoder_tasks("GPTNeoX"),
    prefix="gpt_neox",
    layer="gpt_neox.layers.{}",
    linears={
        **dict.fromkeys((QUERY, KEY, VALUE), "attention.query_key_value"),
        OUTPUT: "attention.dense",
        UP: "mlp.dense_h_to_4h",
        DOWN: "mlp.dense_4h_to_h",
    },
    biases={
        **dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
        **dict.fromkeys((UP, DOWN), True),
    },
    blocks={ATTENTION: ("attention",), MLP: ("mlp",)},
    norms=LLAMA.norms,
    outside={
        "gpt_neox.embed_in.weight": (VOCAB, HIDDEN),
        "gpt_neox.final_layer_norm.weight": (HIDDEN,),
        "gpt_neox.final_layer_norm.bias": (HIDDEN,),
    },
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    norm="layer",
    norm_biases=True,
    alternates_by_head=True,
    has_stated_head_width=False,
    has_kv_heads=False,
    has_partial_rotation=True,
    keys={
        "norm_eps": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    },
    # Files have the first name, transformers' class the second.
    renames={"embed_out.weight": "lm_head.weight"},
    ignored_suffixes=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)

_DECODERS = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, STARCODER2, PHI3, GEMMA2, GEMMA3),
    *(OLMO2, OLMO3, GPT2, GPT_NEOX),
)
_MIXTURES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GLM4_MOE)
_ENCODERS = (BERT, ROBERTA, DISTILBERT, MODERNBERT)
FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (*_DECODERS, *_MIXTURES, *_ENCODERS)
}
