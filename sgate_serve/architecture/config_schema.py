"""Checks a config.json against what transformers' class of the family accepts, field by field.

A value that transformers refuses is refused by name, and so is one that changes what it computes or
which file it reads in a way that this release does not follow. Other keys are ignored, as there.
"""

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.config_kinds import MAX_LAYERS, SHARE
from sgate_serve.architecture.family import (
    ATTENTION,
    FULL_ATTENTION,
    MLP,
    SLIDING_ATTENTION,
    Family,
)
from sgate_serve.architecture.sgate_config import (
    BLOCK,
    PER_LAYER,
    SKIP,
    stored_block,
)
from sgate_serve.architecture.shared_keys import NUM_SHARED
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import (
    FLAG,
    INDICES,
    NUMBERS,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    check_fields,
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
    "num_experts": SIZE,
    "num_experts_per_tok": SIZE,
    "moe_intermediate_size": WHOLE,
    "shared_expert_intermediate_size": WHOLE,
    "linear_num_value_heads": WHOLE,
    "linear_num_key_heads": WHOLE,
}
ROPE_FIELDS: Mapping[str, Kind] = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": POSITIVE,
    "factor": POSITIVE,
    "partial_rotary_factor": SHARE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": SIZE,
    "attention_factor": POSITIVE,
    "beta_fast": POSITIVE,
    "beta_slow": POSITIVE,
    "mscale": POSITIVE,
    "mscale_all_dim": POSITIVE,
    "truncate": FLAG,
    "short_factor": NUMBERS,
    "long_factor": NUMBERS,
}
SGATE_FIELDS: Mapping[str, Kind] = {
    "version": WHOLE,
    "family": TEXT,
    "base_model_type": TEXT,
    "extra_biases": TEXTS,
    "norm_size": SIZE,
    "head_units": SIZE,
    "lowered": OBJECT,
    "expert_units": OBJECT,
    "shared_units": OBJECT,
    "windows": OBJECT,
}
# What the block says of single layers, by their numbers.
BY_LAYER: Mapping[str, Kind] = {"expert_units": INDICES, "shared_units": WHOLE, "windows": SIZE}
LOWERED_FIELDS: Mapping[str, Kind] = {"rows": SIZE, "columns": SIZE}
# Keys with which transformers reads another file or builds something else, unless they have one of
# these values. Most are not fields of any class.
STEERING: Mapping[str, tuple[Any, ...]] = {
    "configuration_files": ([],),
    "transformers_weights": (None,),
    "text_config": (None,),
    "text_encoder": (None,),
    "decoder": (None,),
    "generator": (None,),
    "is_encoder_decoder": (False,),
    "mlp_layer_types": (None,),
    "attribute_map": (),
    "sub_configs": (),
    "default_theta": (),
    "default_rope_type": (),
    "_rope_type_labels": (None,),
}
# The same for models that decode, whose masks and caches they change.
DECODER_STEERING: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "attention_chunk_size": (None,),
    NUM_SHARED: (None, 0),
}

# Encoders attend to all of a text; with true, some kernels of transformers mask what comes later.
ENCODER_STEERING: Mapping[str, tuple[Any, ...]] = {"is_causal": (False,)}


def check_config(config: Mapping[str, Any], source: str, family: Family) -> None:
    """Raise CheckpointError, naming `source` and the field, for a config that means no model."""
    _check_nulls(config, source, family)
    kinds = {key: field.kind for key, field in family.fields.items()}
    check_fields(config, kinds, source, CheckpointError)
    _check_steering(config, source, family)
    check_fields(config, {PER_LAYER: OBJECT, BLOCK: OBJECT}, source, CheckpointError)
    check_fields(stored_block(config), SGATE_FIELDS, f"{source}: {BLOCK}", CheckpointError)
    _check_lowered(stored_block(config).get("lowered") or {}, f"{source}: sgate.lowered")
    for name, kind in BY_LAYER.items():
        _check_by_layer(stored_block(config).get(name) or {}, kind, f"{source}: {BLOCK}.{name}")
    _check_rope(config, source)
    _check_labels(config, source)
    _check_layers(config.get(PER_LAYER) or {}, f"{source}: {PER_LAYER}", family)


def _check_nulls(config: Mapping[str, Any], source: str, family: Family) -> None:
    for key, field in family.fields.items():
        if key in config and config[key] is None and not field.is_nullable:
            raise CheckpointError(
                f"{source}: {key} must be {field.kind.words}, found null; transformers refuses it: "
                "give it a value, or remove the line for the default of its class"
            )


def _check_steering(config: Mapping[str, Any], source: str, family: Family) -> None:
    allowed = {**STEERING, **dict.fromkeys(family.refused, (False, None, 0))}
    allowed |= ENCODER_STEERING if family.is_encoder else DECODER_STEERING
    if family.shares_keys:
        del allowed[NUM_SHARED]
    if not family.is_rotary:
        allowed |= dict.fromkeys(("rope_parameters", "rope_scaling"), (None, {}))
    for key, values in allowed.items():
        field = family.fields.get(key) if key in family.refused else None
        value = config.get(key, None if field is None else field.default)
        if (key in config or field is not None) and value not in values:
            remedy = "convert a checkpoint without it"
            if key not in config:
                remedy = f'it is the default of its class: state "{key}": 0 if the model has none'
            raise CheckpointError(
                f"{source}: {key} {brief(value)} is not supported for family {family.name}; "
                f"{remedy}"
            )
    for alias, key in family.aliases.items():
        if alias in config and key in config and config[alias] != config[key]:
            raise CheckpointError(
                f"{source}: transformers reads {alias} as {key}; here they are "
                f"{brief(config[alias])} and {brief(config[key])}: keep one of them"
            )


def _check_rope(config: Mapping[str, Any], source: str) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        where, settings = f"{source}: {name}", config.get(name) or {}
        check_fields({name: settings}, {name: OBJECT}, source, CheckpointError)
        check_fields(settings, ROPE_FIELDS, where, CheckpointError)
        # Gemma 3 has settings for each type of layer.
        for layer_type in (FULL_ATTENTION, SLIDING_ATTENTION):
            check_fields(settings, {layer_type: OBJECT}, where, CheckpointError)
            own = settings.get(layer_type) or {}
            check_fields(own, ROPE_FIELDS, f"{where}[{layer_type}]", CheckpointError)


def _check_labels(config: Mapping[str, Any], source: str) -> None:
    names, count = config.get("id2label"), config.get("num_labels")
    if names is not None and count is not None and len(names) != count:
        raise CheckpointError(
            f"{source}: num_labels is {count} and id2label names {len(names)} labels; transformers "
            "takes the first and renames them: keep one"
        )
    strange = [key for key in names or () if not str(key).isdecimal()]
    if strange:
        raise CheckpointError(
            f"{source}: id2label has the key {brief(strange[0])}; expected numbers of labels"
        )
    one = (count if names is None else len(names)) == 1
    if one and config.get("problem_type") == "single_label_classification":
        raise CheckpointError(
            f"{source}: problem_type single_label_classification needs more than one label; "
            'transformers refuses it: write "regression"'
        )


def _check_lowered(modules: Mapping[Any, Any], source: str) -> None:
    for module, entry in modules.items():
        where = f"{source}[{brief(module)}]"
        check_fields({"entry": entry}, {"entry": OBJECT}, where, CheckpointError)
        unknown = sorted(set(entry or {}) - set(LOWERED_FIELDS))
        if entry is None or unknown:
            raise CheckpointError(f"{where} must hold rows or columns, found {brief(entry)}")
        check_fields(entry, LOWERED_FIELDS, where, CheckpointError)


def _check_by_layer(layers: Mapping[Any, Any], kind: Kind, where: str) -> None:
    for key, widths in layers.items():
        if not str(key).isdecimal() or len(str(key)) > len(str(MAX_LAYERS)):
            raise CheckpointError(f"{where} holds {brief(key)}; expected the number of a layer")
        if widths is None:
            raise CheckpointError(f"{where}: layer {key} must be {kind.words}, found null")
        check_fields({key: widths}, {key: kind}, where, CheckpointError)


def _check_layers(layers: Mapping[Any, Any], source: str, family: Family) -> None:
    for key, layer in layers.items():
        if not str(key).isdecimal() or len(str(key)) > len(str(MAX_LAYERS)):
            raise CheckpointError(f"{source} holds {brief(key)}; expected the number of a layer")
        check_fields(layers, {key: OBJECT}, source, CheckpointError)
        own = {family.keys.get(key, key): kind for key, kind in LAYER_FIELDS.items()}
        kinds = {**own, SKIP: BLOCK_LIST}
        check_fields(layer or {}, kinds, f"{source}[{key}]", CheckpointError)
    if len({int(key) for key in layers}) < len(layers):
        raise CheckpointError(f"{source} names a layer twice; keep one entry")
