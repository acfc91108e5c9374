"""The entries of mixtures of experts."""

from dataclasses import replace

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BASE,
    CAUSAL_LM,
    DOWN,
    GATE,
    KEY,
    MLP,
    MLP_ROLES,
    QUERY,
    UP,
    VALUE,
    TaskHead,
)
from sgate_serve.architecture.llama_families import LLAMA, MISTRAL, QWEN2, QWEN3, decoder_tasks
from sgate_serve.architecture.mixture import Mixture

_EXPERTS = Mixture(
    router="mlp.gate",
    expert="mlp.experts.{}",
    linears={GATE: "gate_proj", UP: "up_proj", DOWN: "down_proj"},
    normalizes="norm_topk_prob",
)
WITH_SHARED = replace(_EXPERTS, shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate")

MIXTRAL = replace(
    MISTRAL,
    name="mixtral",
    config_class="MixtralConfig",
    tasks=decoder_tasks("Mixtral"),
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
    tasks=decoder_tasks("Qwen2Moe"),
    biases=dict.fromkeys((QUERY, KEY, VALUE), "qkv_bias"),
    windows="alternating",
    mixture=WITH_SHARED,
)

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    config_class="Qwen3MoeConfig",
    tasks=decoder_tasks("Qwen3Moe"),
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

GPT_OSS = replace(
    LLAMA,
    name="gpt_oss",
    config_class="GptOssConfig",
    tasks=decoder_tasks("GptOss"),
    biases={
        **dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
        **dict.fromkeys(MLP_ROLES, True),
    },
    sinks="self_attn.sinks",
    # Scales of a KV cache in 8 bits, which no weight depends on.
    ignored_suffixes=(*LLAMA.ignored_suffixes, *(f"_attn.{name}_scale" for name in "qkv")),
    windows="typed",
    divides_hidden_size=False,
    keys={**LLAMA.keys, "num_experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    # Of two layers the first has a window. The activation is not read: units are clamped.
    fixed={
        "sliding_window_pattern": 2,
        "hidden_act": "silu",
        "default_rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    mixture=Mixture(
        router="mlp.router",
        expert="mlp.experts.{}",
        linears=_EXPERTS.linears,
        normalizes=True,
        units="intermediate_size",
        has_biased_router=True,
        stacks="alternate",
        is_packed=True,
        has_clamped_units=True,
        returns_shares=True,
    ),
)
