"""The entries of Gemma's decoders."""

from collections.abc import Mapping
from dataclasses import replace

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BASE,
    CAUSAL_LM,
    DOWN,
    FULL_ATTENTION,
    GATE,
    HIDDEN,
    MLP,
    SLIDING_ATTENTION,
    UP,
    Axes,
    TaskHead,
)
from sgate_serve.architecture.layer_inputs import INPUT, INPUT_VOCAB, INPUTS, LayerInputs
from sgate_serve.architecture.llama_families import LLAMA, decoder_tasks
from sgate_serve.architecture.mixture import Branch, Mixture

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    config_class="Gemma2Config",
    tasks=decoder_tasks("Gemma2"),
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
        **decoder_tasks("Gemma3", "Gemma3TextForSequenceClassification"),
        BASE: TaskHead("Gemma3TextModel"),
    },
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    has_rope_by_type=True,
    fixed={},
    # transformers' Gemma 3 accepts the cap and ignores it, so which model is meant is unknown.
    refused=("use_bidirectional_attention", "attn_logit_softcapping"),
)

_INPUTS: Mapping[str, Axes] = {
    "model.embed_tokens_per_layer.weight": (INPUT_VOCAB, INPUTS),
    "model.per_layer_model_projection.weight": (INPUTS, HIDDEN),
    "model.per_layer_projection_norm.weight": (INPUT,),
}
GEMMA4 = replace(
    GEMMA3,
    name="gemma4_text",
    config_class="Gemma4TextConfig",
    tasks={
        CAUSAL_LM: TaskHead("Gemma4ForCausalLM", LLAMA.tasks[CAUSAL_LM].tensors),
        BASE: TaskHead("Gemma4TextModel"),
    },
    norm_offset=0.0,
    has_value_norm=True,
    has_heads_by_type=True,
    layer_scale="layer_scalar",
    mixture=Mixture(
        switch="enable_moe_block",
        router="router.proj",
        expert="experts.{}",
        linears={GATE: "gate_proj", UP: "up_proj", DOWN: "down_proj"},
        normalizes=True,
        shared="mlp",
        branch=Branch(
            before="pre_feedforward_layernorm_2",
            after="post_feedforward_layernorm_2",
            after_shared="post_feedforward_layernorm_1",
            router_scale="router.scale",
            share_scale="router.per_expert_scale",
        ),
        stacks="halves",
    ),
    layer_inputs=LayerInputs(
        table="model.embed_tokens_per_layer",
        tensors={
            "per_layer_input_gate.weight": (INPUT, HIDDEN),
            "per_layer_projection.weight": (HIDDEN, INPUT),
            "post_per_layer_input_norm.weight": (HIDDEN,),
        },
    ),
    outside={**GEMMA3.outside, **_INPUTS},
    optional=dict.fromkeys(_INPUTS, "hidden_size_per_layer_input"),
    shares_keys=True,
    keys={
        **GEMMA3.keys,
        "num_experts_per_tok": "top_k_experts",
        "shared_expert_intermediate_size": "intermediate_size",
    },
    windows="full_last",
    # Scores are not scaled: the norms on query and key are.
    fixed={
        "sliding_window_pattern": 6,
        "attention_multiplier": 1.0,
        "rope_by_type": {
            SLIDING_ATTENTION: {"rope_type": "default", "rope_theta": 10_000.0},
            FULL_ATTENTION: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
    },
    divides_hidden_size=False,
    refused=("rope_scaling",),
)
