"""The type of every config.json field that a ModelSpec is read from."""

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.family import (
    ATTENTION,
    FULL_ATTENTION,
    MLP,
    SLIDING_ATTENTION,
    Family,
)
from sgate_serve.architecture.sgate_config import BLOCK, PER_LAYER, SKIP, stored_block
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import (
    FLAG,
    NUMBERS,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXTS,
    TOKEN_ID,
    WHOLE,
    Kind,
    check_fields,
    is_whole,
)

# The deepest published models have a few hundred layers; a spec holds one shape for each.
MAX_LAYERS = 10_000
LAYERS = Kind(
    f"a whole number from 1 to {MAX_LAYERS}",
    lambda value: is_whole(value) and 1 <= value <= MAX_LAYERS,
)
BLOCK_LIST = Kind(
    f'a list of "{ATTENTION}" and "{MLP}"',
    lambda value: TEXTS.accepts(value) and set(value) <= {ATTENTION, MLP},
)

LAYER_FIELDS: Mapping[str, Kind] = {
    "num_attention_heads": WHOLE,
    "num_key_value_heads": WHOLE,
    "head_dim": WHOLE,
    "intermediate_size": WHOLE,
}
CONFIG_FIELDS: Mapping[str, Kind] = {
    **LAYER_FIELDS,
    "model_type": TEXT,
    "num_hidden_layers": LAYERS,
    "hidden_size": SIZE,
    "vocab_size": SIZE,
    "max_position_embeddings": SIZE,
    "original_max_position_embeddings": SIZE,
    "norm_eps": POSITIVE,
    "architectures": TEXTS,
    "type_vocab_size": WHOLE,
    "pad_token_id": TOKEN_ID,
    "num_labels": SIZE,
    "id2label": OBJECT,
    "attn_logit_softcapping": POSITIVE,
    "final_logit_softcapping": POSITIVE,
    "query_pre_attn_scalar": POSITIVE,
    "scale_attn_weights": FLAG,
    "scale_attn_by_inverse_layer_idx": FLAG,
    "partial_rotary_factor": POSITIVE,
    "sliding_window_pattern": SIZE,
    "hidden_act": TEXT,
    "tie_word_embeddings": FLAG,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "use_sliding_window": FLAG,
    "sliding_window": WHOLE,
    "max_window_layers": WHOLE,
    "layer_types": TEXTS,
    "rope_theta": POSITIVE,
    "rope_local_base_freq": POSITIVE,
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
    PER_LAYER: OBJECT,
    BLOCK: OBJECT,
}
ROPE_FIELDS: Mapping[str, Kind] = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": POSITIVE,
    "factor": POSITIVE,
    "partial_rotary_factor": POSITIVE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": SIZE,
    "attention_factor": POSITIVE,
    "short_factor": NUMBERS,
}
SGATE_FIELDS: Mapping[str, Kind] = {
    "version": WHOLE,
    "family": TEXT,
    "base_model_type": TEXT,
    "extra_biases": TEXTS,
    "norm_size": SIZE,
    "head_units": SIZE,
    "lowered": OBJECT,
}
LOWERED_FIELDS: Mapping[str, Kind] = {"rows": SIZE, "columns": SIZE}


def check_config(config: Mapping[str, Any], source: str, family: Family) -> None:
    """Raise CheckpointError, naming `source` and the field, where a config has a wrong type."""
    check_fields(config, _own_keys(CONFIG_FIELDS, family), source, CheckpointError)
    for name, kinds in (
        ("rope_parameters", ROPE_FIELDS),
        ("rope_scaling", ROPE_FIELDS),
        (BLOCK, SGATE_FIELDS),
    ):
        check_fields(config.get(name) or {}, kinds, f"{source}: {name}", CheckpointError)
    rope = config.get("rope_parameters") or {}
    # Some families have settings for each type of layer.
    for layer_type in (FULL_ATTENTION, SLIDING_ATTENTION):
        where = f"{source}: rope_parameters"
        check_fields(rope, {layer_type: OBJECT}, where, CheckpointError)
        own = rope.get(layer_type) or {}
        check_fields(own, ROPE_FIELDS, f"{where}[{layer_type}]", CheckpointError)
    _check_lowered(stored_block(config).get("lowered") or {}, f"{source}: sgate.lowered")
    depth_key = family.keys.get("num_hidden_layers", "num_hidden_layers")
    layer_types, depth = config.get("layer_types"), config.get(depth_key)
    if layer_types is not None and len(layer_types) != depth:
        raise CheckpointError(f"{source}: layer_types names {len(layer_types)} layers of {depth}")
    _check_layers(config.get(PER_LAYER) or {}, f"{source}: {PER_LAYER}", family)


def _own_keys(kinds: Mapping[str, Kind], family: Family) -> dict[str, Kind]:
    return {family.keys.get(key, key): kind for key, kind in kinds.items()}


def _check_lowered(modules: Mapping[Any, Any], source: str) -> None:
    for module, entry in modules.items():
        where = f"{source}[{brief(module)}]"
        check_fields({"entry": entry}, {"entry": OBJECT}, where, CheckpointError)
        unknown = sorted(set(entry or {}) - set(LOWERED_FIELDS))
        if entry is None or unknown:
            raise CheckpointError(f"{where} must hold rows or columns, found {brief(entry)}")
        check_fields(entry, LOWERED_FIELDS, where, CheckpointError)


def _check_layers(layers: Mapping[Any, Any], source: str, family: Family) -> None:
    for key, layer in layers.items():
        if not str(key).isdecimal() or len(str(key)) > len(str(MAX_LAYERS)):
            raise CheckpointError(f"{source} holds {brief(key)}; expected the number of a layer")
        check_fields(layers, {key: OBJECT}, source, CheckpointError)
        kinds = {**_own_keys(LAYER_FIELDS, family), SKIP: BLOCK_LIST}
        check_fields(layer or {}, kinds, f"{source}[{key}]", CheckpointError)
    if len({int(key) for key in layers}) < len(layers):
        raise CheckpointError(f"{source} names a layer twice; keep one entry")
