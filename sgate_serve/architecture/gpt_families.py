"""The entries of GPT-2 and GPT-NeoX."""

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BASE,
    CAUSAL_LM,
    CLASSIFICATION,
    DOWN,
    HIDDEN,
    KEY,
    LABEL_OUTPUTS,
    MLP,
    OUTPUT,
    POSITIONS,
    QUERY,
    UP,
    VALUE,
    VOCAB,
    Family,
    TaskHead,
)
from sgate_serve.architecture.llama_families import LLAMA, decoder_tasks

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
    tasks=decoder_tasks("GPTNeoX"),
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
