"""The encoders of the table of families."""

from collections.abc import Mapping
from dataclasses import replace

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BASE,
    CLASSIFICATION,
    DOWN,
    GATE,
    HEAD_UNITS,
    HIDDEN,
    KEY,
    LABEL_OUTPUTS,
    MLP,
    MLP_ROLES,
    OUTPUT,
    POSITIONS,
    QUERY,
    TYPES,
    UP,
    VALUE,
    VOCAB,
    Axes,
    Dense,
    Family,
    TaskHead,
)

BERT = Family(
    name="bert",
    config_class="BertConfig",
    tasks={
        CLASSIFICATION: TaskHead(
            "BertForSequenceClassification",
            {
                "bert.pooler.dense.weight": (HEAD_UNITS, HIDDEN),
                "bert.pooler.dense.bias": (HEAD_UNITS,),
                "classifier.weight": (LABEL_OUTPUTS, HEAD_UNITS),
                "classifier.bias": (LABEL_OUTPUTS,),
            },
            Dense("bert.pooler.dense", "classifier", "tanh"),
        ),
        BASE: TaskHead(
            "BertModel",
            {"bert.pooler.dense.weight": (HIDDEN, HIDDEN), "bert.pooler.dense.bias": (HIDDEN,)},
        ),
    },
    prefix="bert",
    layer="bert.encoder.layer.{}",
    linears={
        QUERY: "attention.self.query",
        KEY: "attention.self.key",
        VALUE: "attention.self.value",
        OUTPUT: "attention.output.dense",
        UP: "intermediate.dense",
        DOWN: "output.dense",
    },
    biases=dict.fromkeys((*ATTENTION_ROLES, UP, DOWN), True),
    blocks={
        ATTENTION: ("attention.self", "attention.output.dense"),
        MLP: ("intermediate", "output.dense"),
    },
    norms={ATTENTION: "attention.output.LayerNorm", MLP: "output.LayerNorm"},
    outside={
        "bert.embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (TYPES, HIDDEN),
        "bert.embeddings.LayerNorm.weight": (HIDDEN,),
        "bert.embeddings.LayerNorm.bias": (HIDDEN,),
    },
    embedding="bert.embeddings.word_embeddings",
    position_table="bert.embeddings.position_embeddings",
    embedding_norm="bert.embeddings.LayerNorm",
    residual="post",
    norm="layer",
    norm_biases=True,
    has_stated_head_width=False,
    has_kv_heads=False,
    keys={"norm_eps": "layer_norm_eps"},
    refused=("is_decoder", "add_cross_attention", "chunk_size_feed_forward"),
    renames={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
    ignored_suffixes=(".position_ids", ".token_type_ids"),
)


def _renamed(names: Mapping[str, Axes], old: str, new: str) -> dict[str, Axes]:
    return {name.replace(old, new): axes for name, axes in names.items()}


ROBERTA = replace(
    BERT,
    name="roberta",
    config_class="RobertaConfig",
    tasks={
        CLASSIFICATION: TaskHead(
            "RobertaForSequenceClassification",
            {
                "classifier.dense.weight": (HEAD_UNITS, HIDDEN),
                "classifier.dense.bias": (HEAD_UNITS,),
                "classifier.out_proj.weight": (LABEL_OUTPUTS, HEAD_UNITS),
                "classifier.out_proj.bias": (LABEL_OUTPUTS,),
            },
            Dense("classifier.dense", "classifier.out_proj", "tanh"),
        ),
        BASE: TaskHead("RobertaModel", _renamed(BERT.tasks[BASE].tensors, "bert.", "roberta.")),
    },
    prefix="roberta",
    layer="roberta.encoder.layer.{}",
    outside=_renamed(BERT.outside, "bert.", "roberta."),
    embedding="roberta.embeddings.word_embeddings",
    position_table="roberta.embeddings.position_embeddings",
    embedding_norm="roberta.embeddings.LayerNorm",
    has_padded_positions=True,
)

DISTILBERT = replace(
    BERT,
    name="distilbert",
    config_class="DistilBertConfig",
    tasks={
        CLASSIFICATION: TaskHead(
            "DistilBertForSequenceClassification",
            {
                "pre_classifier.weight": (HEAD_UNITS, HIDDEN),
                "pre_classifier.bias": (HEAD_UNITS,),
                "classifier.weight": (LABEL_OUTPUTS, HEAD_UNITS),
                "classifier.bias": (LABEL_OUTPUTS,),
            },
            Dense("pre_classifier", "classifier", "relu"),
        ),
        BASE: TaskHead("DistilBertModel"),
    },
    prefix="distilbert",
    layer="distilbert.transformer.layer.{}",
    linears={
        QUERY: "attention.q_lin",
        KEY: "attention.k_lin",
        VALUE: "attention.v_lin",
        OUTPUT: "attention.out_lin",
        UP: "ffn.lin1",
        DOWN: "ffn.lin2",
    },
    blocks={ATTENTION: ("attention",), MLP: ("ffn",)},
    norms={ATTENTION: "sa_layer_norm", MLP: "output_layer_norm"},
    outside={
        name: axes
        for name, axes in _renamed(BERT.outside, "bert.", "distilbert.").items()
        if TYPES not in axes
    },
    embedding="distilbert.embeddings.word_embeddings",
    position_table="distilbert.embeddings.position_embeddings",
    embedding_norm="distilbert.embeddings.LayerNorm",
    keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    aliases={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
    fixed={"norm_eps": 1e-12},
    refused=("chunk_size_feed_forward",),
)

MODERNBERT = Family(
    name="modernbert",
    config_class="ModernBertConfig",
    tasks={
        CLASSIFICATION: TaskHead(
            "ModernBertForSequenceClassification",
            {
                "head.dense.weight": (HEAD_UNITS, HIDDEN),
                "head.dense.bias": (HEAD_UNITS,),
                "head.norm.weight": (HEAD_UNITS,),
                "head.norm.bias": (HEAD_UNITS,),
                "classifier.weight": (LABEL_OUTPUTS, HEAD_UNITS),
                "classifier.bias": (LABEL_OUTPUTS,),
            },
            Dense("head.dense", "classifier", "classifier_activation", norm="head.norm"),
            pooling="classifier_pooling",
        ),
        BASE: TaskHead("ModernBertModel"),
    },
    prefix="model",
    layer="model.layers.{}",
    linears={
        **dict.fromkeys((QUERY, KEY, VALUE), "attn.Wqkv"),
        OUTPUT: "attn.Wo",
        # transformers calls the half under the activation the input, and the other one the gate.
        **dict.fromkeys((GATE, UP), "mlp.Wi"),
        DOWN: "mlp.Wo",
    },
    biases={
        **dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
        **dict.fromkeys(MLP_ROLES, "mlp_bias"),
    },
    blocks={ATTENTION: ("attn",), MLP: ("mlp",)},
    norms={ATTENTION: "attn_norm", MLP: "mlp_norm"},
    outside={
        "model.embeddings.tok_embeddings.weight": (VOCAB, HIDDEN),
        "model.embeddings.norm.weight": (HIDDEN,),
        "model.embeddings.norm.bias": (HIDDEN,),
        "model.final_norm.weight": (HIDDEN,),
        "model.final_norm.bias": (HIDDEN,),
    },
    optional={
        "model.embeddings.norm.bias": "norm_bias",
        "model.final_norm.bias": "norm_bias",
        "head.dense.bias": "classifier_bias",
        "head.norm.bias": "norm_bias",
    },
    embedding="model.embeddings.tok_embeddings",
    embedding_norm="model.embeddings.norm",
    final_norm="model.final_norm",
    norm="layer",
    norm_biases="norm_bias",
    has_first_norm=False,
    windows="spaced",
    has_rope_by_type=True,
    has_stated_head_width=False,
    has_kv_heads=False,
    keys={
        "hidden_act": "hidden_activation",
        "sliding_window_pattern": "global_attn_every_n_layers",
        "rope_theta": "global_rope_theta",
        "rope_local_base_freq": "local_rope_theta",
    },
    # Those of its rotary embedding alone, or of both types of layers where all others scale one.
    refused=("head_dim", "rope_scaling"),
    ignored_suffixes=("rotary_emb.inv_freq",),
)
