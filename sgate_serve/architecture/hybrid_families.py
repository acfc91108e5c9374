"""The entries of decoders of which some layers attend and others are recurrent."""

from dataclasses import replace

from sgate_serve.architecture.family import (
    ATTENTION_ROLES,
    BASE,
    CAUSAL_LM,
    DECAY,
    KEY,
    MLP_ROLES,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    RENEWAL,
    VALUE,
    TaskHead,
)
from sgate_serve.architecture.llama_families import LLAMA, QWEN3, decoder_tasks
from sgate_serve.architecture.mixture_families import WITH_SHARED
from sgate_serve.architecture.recurrence import Recurrence

_DELTA_RULE = Recurrence(
    block="linear_attn",
    linears={
        **dict.fromkeys((QUERY, KEY, VALUE), "linear_attn.in_proj_qkv"),
        OUTPUT_GATE: "linear_attn.in_proj_z",
        RENEWAL: "linear_attn.in_proj_b",
        DECAY: "linear_attn.in_proj_a",
        OUTPUT: "linear_attn.out_proj",
    },
    convolution="linear_attn.conv1d",
    decay="linear_attn.A_log",
    step="linear_attn.dt_bias",
    norm="linear_attn.norm",
)

QWEN3_5 = replace(
    LLAMA,
    name="qwen3_5_text",
    config_class="Qwen3_5TextConfig",
    tasks={
        **decoder_tasks("Qwen3_5", "Qwen3_5TextForSequenceClassification"),
        BASE: TaskHead("Qwen3_5TextModel"),
    },
    linears={
        **dict.fromkeys((QUERY, OUTPUT_GATE), "self_attn.q_proj"),
        **{role: LLAMA.linears[role] for role in (KEY, VALUE, OUTPUT, *MLP_ROLES)},
    },
    biases=dict.fromkeys((*ATTENTION_ROLES, OUTPUT_GATE), "attention_bias"),
    alternates_by_head=True,
    recurrence=_DELTA_RULE,
    head_norms=QWEN3.head_norms,
    norm_offset=1.0,
    has_partial_rotation=True,
    divides_hidden_size=False,
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe_text",
    config_class="Qwen3_5MoeTextConfig",
    tasks={
        CAUSAL_LM: replace(LLAMA.tasks[CAUSAL_LM], model_class="Qwen3_5MoeForCausalLM"),
        BASE: TaskHead("Qwen3_5MoeTextModel"),
    },
    mixture=replace(WITH_SHARED, normalizes=True),
)

QWEN3_NEXT = replace(
    QWEN3_5,
    name="qwen3_next",
    config_class="Qwen3NextConfig",
    tasks=decoder_tasks("Qwen3Next"),
    recurrence=replace(
        _DELTA_RULE,
        linears={
            **dict.fromkeys((QUERY, KEY, VALUE, OUTPUT_GATE), "linear_attn.in_proj_qkvz"),
            **dict.fromkeys((RENEWAL, DECAY), "linear_attn.in_proj_ba"),
            OUTPUT: _DELTA_RULE.linears[OUTPUT],
        },
        alternates_by_key_head=True,
    ),
    mixture=WITH_SHARED,
)
