"""The Plan: what survives of each layer, in the original coordinates, and why the rest goes.

One frozen, versioned value. Rules make it, `rewrite` applies it, everything else reads it; nobody
re-reads masks. Indices are absolute, sorted and unique. Whatever follows from them (widths, rows
and columns of each linear, removed fractions) is a property here and stored nowhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint import read_json
from sgate_serve.errors import PlanError
from sgate_serve.families import ATTENTION, ATTENTION_ROLES, DOWN, MLP, MLP_ROLES, OUTPUT, QUERY
from sgate_serve.fields import INDICES, TEXT, TEXTS, WHOLE, Kind
from sgate_serve.spec import LayerShape, ModelSpec

PLAN_FORMAT = "sgate-plan"
PLAN_VERSION = 1
PLAN_FILE = "sgate_plan.json"

Indices = tuple[int, ...]
Axis = Literal["mlp_units", "heads", "kv_heads"]
AXES: tuple[Axis, ...] = ("mlp_units", "heads", "kv_heads")


@dataclass(frozen=True)
class Gate:
    """Read-outs of one linear's gates in [0, 1]; None where that side has no gate.

    y = ((x ∘ columns) Wᵀ + b) ∘ rows (arXiv 2412.12951).
    """

    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None


Masks = Mapping[str, Gate]


@dataclass(frozen=True)
class Removal:
    """Units of one axis that one rule found dead, with the root cause in words."""

    axis: Axis
    indices: Indices
    rule: str
    cause: str


@dataclass(frozen=True)
class Revival:
    """Dead units that stay because something wants the width; they add exactly nothing."""

    axis: Axis
    indices: Indices
    reason: str


@dataclass(frozen=True)
class LinearPlan:
    """One linear's surviving rows and columns; None means all of them."""

    rows: NDArray[np.int64] | None
    columns: NDArray[np.int64] | None


@dataclass(frozen=True)
class LayerPlan:
    """Surviving MLP units, query heads and KV heads of one layer, and the history of the rest.

    `dense` is the shape before: the coordinates that every index here refers to.
    """

    index: int
    dense: LayerShape
    mlp_units: Indices
    heads: Indices
    kv_heads: Indices
    removals: tuple[Removal, ...] = ()
    revivals: tuple[Revival, ...] = ()

    def survivors(self, axis: Axis) -> Indices:
        return {"mlp_units": self.mlp_units, "heads": self.heads, "kv_heads": self.kv_heads}[axis]

    @property
    def shape(self) -> LayerShape:
        return replace(
            self.dense,
            num_heads=len(self.heads),
            num_kv_heads=len(self.kv_heads),
            mlp_units=len(self.mlp_units),
        )

    @property
    def skipped_blocks(self) -> tuple[str, ...]:
        gone = {ATTENTION: not self.heads, MLP: not self.mlp_units}
        return tuple(block for block, is_gone in gone.items() if is_gone)

    def linear(self, role: str) -> LinearPlan | None:
        """Return what survives of one linear, or None if its whole block goes."""
        if not (self.heads if role in ATTENTION_ROLES else self.mlp_units):
            return None
        if role in MLP_ROLES:
            kept, total = self.mlp_units, self.dense.mlp_units
            indices = np.asarray(kept, np.int64)
        else:
            kept = self.heads if role in (QUERY, OUTPUT) else self.kv_heads
            is_query = role in (QUERY, OUTPUT)
            total = self.dense.num_heads if is_query else self.dense.num_kv_heads
            indices = head_dims(kept, self.dense.head_dim)
        survivors = None if len(kept) == total else indices
        reads_hidden = role not in (OUTPUT, DOWN)
        return LinearPlan(survivors, None) if reads_hidden else LinearPlan(None, survivors)


@dataclass(frozen=True)
class Plan:
    """The decision for a whole model, bound to the base checkpoint by its fingerprint."""

    family: str
    base_fingerprint: str
    align: int
    layers: tuple[LayerPlan, ...]
    extra_biases: tuple[str, ...] = ()
    version: int = PLAN_VERSION

    def spec(self, dense: ModelSpec) -> ModelSpec:
        """Return the architecture of the rewritten model."""
        shapes = tuple(layer.shape for layer in self.layers)
        return replace(dense, layers=shapes, extra_biases=frozenset(self.extra_biases))

    def dense_spec(self, small: ModelSpec) -> ModelSpec:
        """Return the architecture before, from that of the rewritten model."""
        return replace(small, layers=tuple(layer.dense for layer in self.layers))

    def removed(self, dense: ModelSpec) -> float:
        """Fraction of the gateable linear weights that goes, at the alignment in force."""
        total = dense.num_gateable
        return 1 - self.spec(dense).num_gateable / total if total else 0.0

    def removed_overall(self, dense: ModelSpec) -> float:
        """Fraction of all parameters that goes, embeddings and head counted."""
        return 1 - self.spec(dense).num_parameters / dense.num_parameters

    def check(self, dense: ModelSpec, source: str = "plan") -> None:
        """Raise PlanError, naming `source`, unless this model can be rewritten by the plan."""
        if self.version != PLAN_VERSION:
            raise PlanError(f"{source} version {self.version!r}, this release reads {PLAN_VERSION}")
        if self.family != dense.family.name or len(self.layers) != len(dense.layers):
            raise PlanError(
                f"{source} is for {len(self.layers)} layers of {self.family:.40}, the checkpoint "
                f"has {len(dense.layers)} of {dense.family.name}"
            )
        for index, (layer, shape) in enumerate(zip(self.layers, dense.layers, strict=True)):
            if layer.dense != shape:
                raise PlanError(f"{source}, layer {index}: made for {layer.dense}, found {shape}")
            _check_layer(layer, index, source)

    def to_json(self) -> dict[str, Any]:
        # Not asdict(): it copies one index at a time, and a 70B model's plan holds millions.
        layers = [
            vars(layer)
            | {"dense": vars(layer.dense)}
            | {key: [vars(v) for v in getattr(layer, key)] for key in ("removals", "revivals")}
            for layer in self.layers
        ]
        return {"format": PLAN_FORMAT, **vars(self), "layers": layers}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str) -> "Plan":
        """Read a stored plan; raise PlanError naming `source` if it is malformed."""
        found = value.get("format"), value.get("version")
        if found != (PLAN_FORMAT, PLAN_VERSION):
            raise PlanError(
                f"{source} is no plan of this release: format {brief(found[0])} version "
                f"{brief(found[1])}, expected {PLAN_FORMAT} version {PLAN_VERSION}"
            )
        try:
            return cls(
                family=_typed(value, "family", TEXT),
                base_fingerprint=_typed(value, "base_fingerprint", TEXT),
                align=_typed(value, "align", WHOLE),
                layers=tuple(_layer_from_json(layer) for layer in value["layers"]),
                extra_biases=tuple(_typed(value, "extra_biases", TEXTS)),
                version=PLAN_VERSION,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{source} is no plan of this release: {error!r:.200}") from error


def head_dims(heads: Indices, head_dim: int) -> NDArray[np.int64]:
    """Return the row or column indices that `heads` occupy, `head_dim` for each head."""
    starts = np.asarray(heads, np.int64)[:, None] * head_dim
    return (starts + np.arange(head_dim)).reshape(-1)


def _check_layer(layer: LayerPlan, index: int, source: str) -> None:
    dense = layer.dense
    sizes = {"mlp_units": dense.mlp_units, "heads": dense.num_heads, "kv_heads": dense.num_kv_heads}
    where = f"{source}, layer {layer.index}"
    if layer.index != index:
        raise PlanError(f"{where} stands at position {index}; layers must be in order")
    for axis in AXES:
        kept = layer.survivors(axis)
        if list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < sizes[axis]):
            raise PlanError(f"{where}: {axis} must be sorted, unique and below {sizes[axis]}")
    owners = [head // dense.queries_per_kv for head in layer.heads]
    per_group = {owners.count(kv) for kv in layer.kv_heads}
    if set(owners) != set(layer.kv_heads) or len(per_group) > 1:
        raise PlanError(f"{where}: every kept KV head needs the same number of its query heads")


def _layer_from_json(value: Mapping[str, Any]) -> LayerPlan:
    dense = value["dense"]
    return LayerPlan(
        index=_typed(value, "index", WHOLE),
        dense=LayerShape(**{str(key): _typed(dense, key, WHOLE) for key in dense}),
        **{axis: _indices(value, axis) for axis in AXES},
        removals=tuple(
            Removal(
                _axis(removal["axis"]),
                _indices(removal, "indices"),
                rule=_typed(removal, "rule", TEXT),
                cause=_typed(removal, "cause", TEXT),
            )
            for removal in value["removals"]
        ),
        revivals=tuple(
            Revival(
                _axis(revival["axis"]),
                _indices(revival, "indices"),
                reason=_typed(revival, "reason", TEXT),
            )
            for revival in value["revivals"]
        ),
    )


def _typed(value: Mapping[str, Any], key: str, kind: Kind) -> Any:
    if not kind.accepts(value[key]):
        raise ValueError(f"{key} must be {kind.words}, found {brief(value[key])}")
    return value[key]


def _indices(value: Mapping[str, Any], key: str) -> Indices:
    return tuple(_typed(value, key, INDICES))


def _axis(value: Any) -> Axis:
    for axis in AXES:
        if value == axis:
            return axis
    raise ValueError(f"unknown axis {brief(value)}")
