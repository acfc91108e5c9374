"""The Plan: the survivors of each layer, in the original coordinates, and why the rest goes.

One frozen, versioned value. Rules make it, `rewrite` applies it, everything else reads it; masks
are not read again. Indices are absolute, sorted and unique. What follows from them (widths, rows
and columns of each linear, removed fractions) is derived, never stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.plan.folds import Fold, Indices

PLAN_FORMAT = "sgate-plan"
PLAN_VERSION = 2
PLAN_FILE = "sgate_plan.json"

Axis = Literal["mlp_units", "heads", "kv_heads", "value_dims", "key_dims", "experts"]
# Heads and KV heads are counted whole, dimensions as rows of the value and key projections; the
# units of a mixture are those of its experts one after another.
AXES: tuple[Axis, ...] = ("mlp_units", "heads", "kv_heads", "value_dims", "key_dims", "experts")


@dataclass(frozen=True)
class Gate:
    """Read-outs of one linear's gates in [0, 1]; None for a side without gates.

    y = ((x ∘ columns) Wᵀ + b) ∘ rows (arXiv 2412.12951).
    """

    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None


Masks = Mapping[str, Gate]


@dataclass(frozen=True)
class Removal:
    """The indices that one rule found dead on one axis, with the root cause in words.

    `axis` is one of AXES, `<role>.columns` for the inputs of a reader, `hidden` or `head_units`.
    """

    axis: str
    indices: Indices
    rule: str
    cause: str


@dataclass(frozen=True)
class Revival:
    """Dead units that stay, zeroed, because a target needs the width; they add exactly nothing."""

    axis: Axis
    indices: Indices
    reason: str


@dataclass(frozen=True)
class Lowering:
    """How zero rows or columns are removed if the dimension itself must stay.

    `kept` rows are scattered to their positions, `kept` columns gathered from theirs; `dense` keeps
    the zeros. `saved` counts the weights that this removes, `cost` is the time of its index work in
    weights read. Several `roles` share one gather.
    """

    roles: tuple[str, ...]
    side: Literal["rows", "columns"]
    how: Literal["scatter", "gather", "dense"]
    kept: Indices
    saved: int
    cost: int


@dataclass(frozen=True)
class Merge:
    """Heads or key dimensions of a layer that become one, the first of `indices`."""

    axis: Literal["heads", "key_dims"]
    layer: int
    indices: Indices


@dataclass(frozen=True)
class Target:
    """The target of a plan: multiples of `align`, `tensor_parallel` shards, an engine.

    `uniform` asks for layers that are all alike, which a stock model class can hold.
    """

    align: int = 1
    tensor_parallel: int = 1
    engine: str | None = None
    uniform: bool = False


@dataclass(frozen=True)
class LayerPlan:
    """The survivors of one layer on every axis, the lowering of the rest, and its history.

    `dense` is the shape before pruning, whose coordinates all indices use.
    """

    index: int
    dense: LayerShape
    mlp_units: Indices
    heads: Indices
    kv_heads: Indices
    value_dims: Indices
    key_dims: Indices
    experts: Indices = ()
    lowerings: tuple[Lowering, ...] = ()
    removals: tuple[Removal, ...] = ()
    revivals: tuple[Revival, ...] = ()

    def survivors(self, axis: Axis) -> Indices:
        indices: Indices = getattr(self, axis)
        return indices

    def revived(self, axis: Axis) -> set[int]:
        return {i for revival in self.revivals if revival.axis == axis for i in revival.indices}

    @property
    def shape(self) -> LayerShape:
        num_heads, num_kv_heads = len(self.heads), len(self.kv_heads)
        return self.dense.narrowed(num_heads, num_kv_heads, self.mlp_units, self.experts)

    @property
    def skipped_blocks(self) -> tuple[str, ...]:
        return self.shape.skipped_blocks

    def without_revived(self) -> "LayerPlan":
        """Return the plan of the layer without what is kept only for its width."""
        units, heads, kv_heads = (
            tuple(i for i in self.survivors(axis) if i not in revived)
            if (revived := self.revived(axis))
            else self.survivors(axis)
            for axis in ("mlp_units", "heads", "kv_heads")
        )
        return replace(self, mlp_units=units, heads=heads, kv_heads=kv_heads)


@dataclass(frozen=True)
class Plan:
    """The decision for a whole model, bound to the base checkpoint by its fingerprint and digest.

    Only the plan of a conversion has a digest, for it takes reading all of the base, and plans of
    older releases have none.
    `hidden` are the surviving residual dimensions of `dense_hidden`, `head_units` the surviving
    units on top of `dense_head_units`; None means all. `closed` and `dead` count block weights: in
    closed rows or columns, and provably dead. `gates_fingerprint` is that of the gates, empty
    without gates, and None in plans of releases that did not record it.
    """

    family: str
    base_fingerprint: str
    target: Target
    layers: tuple[LayerPlan, ...]
    dense_hidden: int
    dense_head_units: int
    closed: int
    dead: int
    hidden: Indices | None = None
    head_units: Indices | None = None
    folds: tuple[Fold, ...] = ()
    merges: tuple[Merge, ...] = ()
    extra_biases: tuple[str, ...] = ()
    removals: tuple[Removal, ...] = field(default=())
    base_digest: str | None = None
    gates_fingerprint: str | None = None

    def check(self, dense: ModelSpec, source: str = "plan") -> None:
        """Raise PlanError, naming `source`, unless the plan can rewrite this model."""
        if self.family != dense.family.name or len(self.layers) != len(dense.layers):
            raise PlanError(
                f"{source} is for {len(self.layers)} layers of {self.family:.40}, the checkpoint "
                f"has {len(dense.layers)} of {dense.family.name}"
            )
        for index, (layer, shape) in enumerate(zip(self.layers, dense.layers, strict=True)):
            if layer.dense != shape:
                raise PlanError(f"{source}, layer {index}: made for {layer.dense}, found {shape}")
            _check_layer(layer, index, source)
        for name, kept, size, found in (
            ("hidden", self.hidden, self.dense_hidden, dense.hidden_size),
            ("head_units", self.head_units, self.dense_head_units, dense.head_units),
        ):
            if size != found:
                raise PlanError(f"{source}: {name} of {size}, but the checkpoint has {found}")
            if kept is not None:
                check_indices(kept, size, f"{source}: {name}")
                if not kept:
                    raise PlanError(f"{source}: {name} keeps nothing")


def head_dims(heads: Indices, head_dim: int) -> NDArray[np.int64]:
    """Return the row or column indices that `heads` occupy, `head_dim` for each head."""
    starts = np.asarray(heads, np.int64)[:, None] * head_dim
    return (starts + np.arange(head_dim)).reshape(-1)


def check_indices(kept: Indices, size: int, where: str) -> None:
    """Raise PlanError unless `kept` are sorted, unique and below `size`."""
    indices = np.asarray(kept, np.int64)
    is_inside = not indices.size or 0 <= indices[0] <= indices[-1] < size
    if not is_inside or (np.diff(indices) <= 0).any():
        raise PlanError(f"{where} must be sorted, unique and below {size}")


def _check_layer(layer: LayerPlan, index: int, source: str) -> None:
    dense = layer.dense
    kv_dims = 0 if dense.is_recurrent else dense.num_kv_heads * dense.head_dim
    heads, kv_heads = dense.num_heads, dense.num_kv_heads
    sizes = (dense.mlp_units, heads, kv_heads, kv_dims, kv_dims, len(dense.experts))
    where = f"{source}, layer {layer.index}"
    if layer.index != index:
        raise PlanError(f"{where} is at position {index}; layers must be in order")
    for axis, size in zip(AXES, sizes, strict=True):
        check_indices(layer.survivors(axis), size, f"{where}: {axis}")
    _check_experts(layer, where)
    owners = [head // dense.queries_per_kv for head in layer.heads]
    per_group = {owners.count(kv) for kv in layer.kv_heads}
    if set(owners) != set(layer.kv_heads) or len(per_group) > 1:
        raise PlanError(f"{where}: every kept KV head needs the same number of its query heads")


def _check_experts(layer: LayerPlan, where: str) -> None:
    """Raise PlanError if a layer keeps units of experts that it removes, or units of no expert."""
    removed = set(range(len(layer.dense.experts))) - set(layer.experts)
    if not removed:
        return
    units, spans = np.asarray(layer.mlp_units), layer.dense.expert_spans
    for expert in removed:
        span = spans[expert]
        if ((units >= span.start) & (units < span.stop)).any():
            raise PlanError(f"{where}: expert {expert} is removed, but some of its units are kept")
    if layer.mlp_units and not layer.experts:
        raise PlanError(f"{where}: no expert is kept, but units are")
