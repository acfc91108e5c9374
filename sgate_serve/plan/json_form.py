"""The Plan as JSON: written next to the model, read back with every field checked."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeVar

from sgate_serve.architecture.family import ATTENTION, BLOCKS, MLP_ROLES, READERS, WRITERS
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.errors import PlanError
from sgate_serve.json_fields import FLAG, INDICES, OBJECT, TEXT, TEXTS, WHOLE, Kind, read_json
from sgate_serve.plan import (
    AXES,
    PLAN_FORMAT,
    PLAN_VERSION,
    BlockFold,
    ColumnFold,
    Fold,
    HeadUnitFold,
    Indices,
    LayerFold,
    LayerPlan,
    Lowering,
    Merge,
    Plan,
    Removal,
    Revival,
    Target,
    UnitFold,
    ValueFold,
)

ROLES = (*READERS[ATTENTION], WRITERS[ATTENTION], *MLP_ROLES)
# How the format spells what a fold removes.
UNITS, VALUE_DIMS, HEAD_UNITS = "mlp_units", "value_dims", "head_units"
COLUMNS = {f"{role}.columns": role for role in ROLES}
SOURCES = {UNITS, VALUE_DIMS, HEAD_UNITS, *BLOCKS, *COLUMNS}
OBJECTS = Kind(
    "a list of objects", lambda v: isinstance(v, list | tuple) and all(map(OBJECT.accepts, v))
)
OPTIONAL_TEXT = Kind("a string or null", lambda value: value is None or isinstance(value, str))
KEPT = Kind("a list of whole numbers or null", lambda v: v is None or INDICES.accepts(v))

Value = TypeVar("Value")


def _choice(*words: str) -> Kind:
    return Kind(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words)


# Fields of layers that only mixtures have, and one that is written where it is false.
EXPERTS, TOP_K = "experts", "top_k"
HAS_VALUES, HAS_KEYS, MLP_FACTOR = "has_values", "has_keys", "mlp_factor"
# One that only recurrent layers have.
KEY_DIM = "key_dim"

KINDS: Mapping[type[Any], Mapping[str, Kind]] = {
    Removal: {"axis": TEXT, "indices": INDICES, "rule": TEXT, "cause": TEXT},
    Revival: {"axis": _choice(*AXES), "indices": INDICES, "reason": TEXT},
    Lowering: {
        "roles": Kind("a list of roles", lambda v: TEXTS.accepts(v) and set(v) <= set(ROLES)),
        "side": _choice("rows", "columns"),
        "how": _choice("scatter", "gather", "dense"),
        "kept": INDICES,
        "saved": WHOLE,
        "cost": WHOLE,
    },
    Merge: {"axis": _choice("heads", "key_dims"), "layer": WHOLE, "indices": INDICES},
    Target: {"align": WHOLE, "tensor_parallel": WHOLE, "engine": OPTIONAL_TEXT, "uniform": FLAG},
    LayerShape: {f.name: WHOLE for f in fields(LayerShape)}
    | {EXPERTS: INDICES}
    | dict.fromkeys((HAS_VALUES, HAS_KEYS), FLAG),
}
# The values of fields that plans written before these existed lack.
ADDED_FIELDS: Mapping[type[Any], Mapping[str, Any]] = {
    Target: {"uniform": False},
    LayerShape: {EXPERTS: [], TOP_K: 0, KEY_DIM: 0, MLP_FACTOR: 1}
    | dict.fromkeys((HAS_VALUES, HAS_KEYS), True),
}
FOLD_KINDS: Mapping[str, Kind] = {
    "source": _choice(*sorted(SOURCES)),
    "layer": WHOLE,
    "indices": INDICES,
    "target": TEXT,
}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    # asdict() would copy one index at a time, and a 70B model's plan has millions.
    layers = [
        _without_defaults(vars(layer), layer.dense)
        | {"dense": _without_defaults(vars(layer.dense), layer.dense)}
        | {key: _objects(getattr(layer, key)) for key in ("lowerings", "removals", "revivals")}
        for layer in plan.layers
    ]
    parts = {key: _objects(getattr(plan, key)) for key in ("merges", "removals")}
    parts["folds"] = [_fold_to_json(fold, len(plan.layers)) for fold in plan.folds]
    head = {"format": PLAN_FORMAT, "version": PLAN_VERSION}
    return head | vars(plan) | {"target": vars(plan.target), "layers": layers} | parts


def _without_defaults(values: Mapping[str, Any], dense: LayerShape) -> dict[str, Any]:
    """Return fields of a layer without those that only say that it is no layer of a rarer kind."""
    unsaid = {*(() if dense.experts else (EXPERTS, TOP_K)), *([HAS_VALUES] * dense.has_values)}
    unsaid |= {HAS_KEYS} if dense.has_keys else set()
    unsaid |= {MLP_FACTOR} if dense.mlp_factor == 1 else set()
    unsaid |= set() if dense.is_recurrent else {KEY_DIM}
    return {key: value for key, value in values.items() if key not in unsaid}


def write_plan(plan: Plan, path: Path) -> None:
    path.write_text(json.dumps(plan_to_json(plan)) + "\n", encoding="utf-8")


def read_plan(path: Path) -> Plan:
    """Read a stored plan; raise SgateError naming the file if it is malformed."""
    return plan_from_json(read_json(path), str(path))


def plan_from_json(value: Mapping[str, Any], source: str) -> Plan:
    """Read a plan from JSON values; raise PlanError naming `source` if they are malformed."""
    found = value.get("format"), value.get("version")
    if found != (PLAN_FORMAT, PLAN_VERSION):
        raise PlanError(
            f"{source} is not a plan of this release: format {brief(found[0])} version "
            f"{brief(found[1])}, expected {PLAN_FORMAT} version {PLAN_VERSION}; convert again"
        )
    try:
        return _read_whole(value)
    except _MalformedError as error:
        raise PlanError(
            f"{source} is not a plan of this release: {error.key} {error.reason}; convert the base "
            "again"
        ) from error


class _MalformedError(Exception):
    """The path of a key in a stored plan, and what is wrong with it in words."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason


def _read_whole(value: Mapping[str, Any]) -> Plan:
    return Plan(
        family=_typed(value, "family", TEXT),
        base_fingerprint=_typed(value, "base_fingerprint", TEXT),
        target=_one(value, "target", lambda each: _read(Target, each)),
        layers=_all(value, "layers", _read_layer),
        **{key: _typed(value, key, WHOLE) for key in _COUNTS},
        hidden=_kept(value, "hidden"),
        head_units=_kept(value, "head_units"),
        folds=_all(value, "folds", _read_fold),
        merges=_all(value, "merges", lambda each: _read(Merge, each)),
        extra_biases=tuple(_typed(value, "extra_biases", TEXTS)),
        removals=_all(value, "removals", lambda each: _read(Removal, each)),
        base_digest=_optional_text(value, "base_digest"),
        gates_fingerprint=_optional_text(value, "gates_fingerprint"),
    )


def with_added_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored plan's JSON object with what plans of older releases lack, as it is read."""
    return {**value, "target": {**ADDED_FIELDS[Target], **value["target"]}}


_COUNTS = ("dense_hidden", "dense_head_units", "closed", "dead")


def _objects(values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [vars(value) for value in values]


def _fold_to_json(fold: Fold, num_layers: int) -> dict[str, Any]:
    if isinstance(fold, BlockFold):
        values: tuple[str, int, Indices, str] = (fold.block, fold.layer, (), fold.target)
    elif isinstance(fold, HeadUnitFold):
        # The format counts units on top as a layer after the last.
        values = (HEAD_UNITS, num_layers, fold.indices, "")
    else:
        values = (_layer_source(fold), fold.layer, fold.indices, "")
    return dict(zip(FOLD_KINDS, values, strict=True))


def _layer_source(fold: LayerFold) -> str:
    if isinstance(fold, ColumnFold):
        return f"{fold.role}.columns"
    return UNITS if isinstance(fold, UnitFold) else VALUE_DIMS


def _read_fold(value: Mapping[str, Any]) -> Fold:
    read = {key: _typed(value, key, kind) for key, kind in FOLD_KINDS.items()}
    source, layer, indices = read["source"], read["layer"], tuple(read["indices"])
    if source in BLOCKS:
        return BlockFold(layer, source, read["target"])
    if source in COLUMNS:
        return ColumnFold(layer, COLUMNS[source], indices)
    if source == HEAD_UNITS:
        return HeadUnitFold(indices)
    return UnitFold(layer, indices) if source == UNITS else ValueFold(layer, indices)


def _read_layer(value: Mapping[str, Any]) -> LayerPlan:
    return LayerPlan(
        index=_typed(value, "index", WHOLE),
        dense=_one(value, "dense", lambda each: _read(LayerShape, each)),
        **{axis: tuple(_typed({EXPERTS: [], **value}, axis, INDICES)) for axis in AXES},
        lowerings=_all(value, "lowerings", lambda each: _read(Lowering, each)),
        removals=_all(value, "removals", lambda each: _read(Removal, each)),
        revivals=_all(value, "revivals", lambda each: _read(Revival, each)),
    )


def _all(
    value: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], Value]
) -> tuple[Value, ...]:
    """Read a list of JSON objects."""
    return tuple(
        _object(each, f"{key}[{index}]", read)
        for index, each in enumerate(_typed(value, key, OBJECTS))
    )


def _one(value: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], Value]) -> Value:
    """Read a JSON object."""
    return _object(_typed(value, key, OBJECT), key, read)


def _object(
    value: Mapping[str, Any], path: str, read: Callable[[Mapping[str, Any]], Value]
) -> Value:
    try:
        return read(value)
    except _MalformedError as error:
        raise _MalformedError(f"{path}.{error.key}", error.reason) from error


def _read(kind: type[Value], value: Mapping[str, Any]) -> Value:
    """Build a dataclass from a JSON object that has each of its fields with the right type."""
    value = {**ADDED_FIELDS.get(kind, {}), **value}
    read = {key: _typed(value, key, expected) for key, expected in KINDS[kind].items()}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()})


def _kept(value: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    kept = _typed(value, key, KEPT)
    return None if kept is None else tuple(kept)


def _optional_text(value: Mapping[str, Any], key: str) -> str | None:
    """Return a string that plans of older releases lack."""
    text: str | None = _typed({key: None, **value}, key, OPTIONAL_TEXT)
    return text


def _typed(value: Mapping[str, Any], key: str, kind: Kind) -> Any:
    if key not in value:
        raise _MalformedError(key, "is missing")
    if not kind.accepts(value[key]):
        raise _MalformedError(key, f"must be {kind.words}, found {brief(value[key])}")
    return value[key]
