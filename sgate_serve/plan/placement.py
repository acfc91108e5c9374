"""A plan's effect on each linear: the rows and columns that are stored, and their positions.

Everything here follows from a Plan and the dense architecture; nothing is decided.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import DOWN, KEY, MLP_ROLES, OUTPUT, QUERY, VALUE
from sgate_serve.architecture.shapes import Lowered
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.plan import LayerPlan, Lowering, Plan, head_dims

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One side of a linear: the dimensions that stay, and those of them that are stored.

    Both are in the original coordinates. `index` has the positions of the stored among those that
    stay, and is None if all are stored.
    """

    stays: Positions
    stored: Positions
    is_lowered: bool = False

    @property
    def index(self) -> Positions | None:
        return np.searchsorted(self.stays, self.stored) if self.is_lowered else None

    def is_all(self, size: int) -> bool:
        return len(self.stored) == size


@dataclass(frozen=True)
class Placement:
    """The two sides of one role's linear."""

    rows: Side
    columns: Side


def place(plan: Plan, dense: ModelSpec, index: int, role: str) -> Placement | None:
    """Return the stored part of one role's linear, or None if its whole block is removed."""
    layer = plan.layers[index]
    if not (layer.mlp_units if role in MLP_ROLES else layer.heads):
        return None
    hidden = np.asarray(
        range(dense.hidden_size) if plan.hidden is None else plan.hidden, dtype=np.int64
    )
    own = _own_dims(layer, role)
    is_writer = role in (OUTPUT, DOWN)
    rows, columns = (hidden, own) if is_writer else (own, hidden)
    return Placement(_side(layer, role, "rows", rows), _side(layer, role, "columns", columns))


def pruned_spec(plan: Plan, dense: ModelSpec) -> ModelSpec:
    """Return the architecture of the rewritten model."""
    small = replace(
        dense,
        layers=tuple(layer.shape for layer in plan.layers),
        extra_biases=frozenset(plan.extra_biases),
        hidden_size=dense.hidden_size if plan.hidden is None else len(plan.hidden),
        head_units=dense.head_units if plan.head_units is None else len(plan.head_units),
    )
    lowered = {}
    for name, index in small.module_names().items():
        found = _lowered_module(plan.layers[index], small, small.modules(index)[name])
        if found != Lowered():
            lowered[name] = found
    return replace(small, lowered=lowered)


def dense_spec(plan: Plan, small: ModelSpec, source: str) -> ModelSpec:
    """Return the architecture before pruning, from that of the rewritten model.

    Raises PlanError, naming `source`, if the plan does not lead to `small`.
    """
    dense = replace(
        small,
        layers=tuple(layer.dense for layer in plan.layers),
        hidden_size=plan.dense_hidden,
        head_units=plan.dense_head_units,
        extra_biases=frozenset(),
        lowered={},
    )
    dense.check(source)
    plan.check(dense, source)
    if pruned_spec(plan, dense) != small:
        raise PlanError(
            f"{source}: the plan's widths are not those of config.json; convert the base again"
        )
    return dense


def _own_dims(layer: LayerPlan, role: str) -> Positions:
    if role in MLP_ROLES:
        return np.asarray(layer.mlp_units, np.int64)
    heads, width = layer.dense.dims_of(role)
    return head_dims(layer.survivors(heads), width)


def _side(layer: LayerPlan, role: str, side: str, stays: Positions) -> Side:
    lowering = _cut_of(layer, role, side)
    if lowering is None:
        return Side(stays, stays)
    return Side(stays, np.asarray(lowering.kept, np.int64), is_lowered=True)


def _cut_of(layer: LayerPlan, role: str, side: str) -> Lowering | None:
    """Return the gather or scatter that applies to one side of a role's linear, if any."""
    for lowering in layer.lowerings:
        if role in lowering.roles and lowering.side == side and lowering.how != "dense":
            return lowering
    return None


def _lowered_module(layer: LayerPlan, small: ModelSpec, roles: tuple[str, ...]) -> Lowered:
    """Return how much of a module is stored, without building its index arrays."""
    rows = {role: _cut_of(layer, role, "rows") for role in roles}
    columns, shapes = _cut_of(layer, roles[0], "columns"), small.linear_shapes(layer.index)
    counts = [len(cut.kept) if cut else shapes[role][0] for role, cut in rows.items()]
    return Lowered(
        rows=sum(counts) if any(rows.values()) else None,
        columns=None if columns is None else len(columns.kept),
    )


def dims_of_group(layer: LayerPlan, role: str) -> Positions:
    """Return, for each row of a query, key or value projection, its key or value dimension."""
    dense = layer.dense
    dims = np.arange(dense.num_kv_heads * dense.head_dim).reshape(dense.num_kv_heads, 1, -1)
    repeats = dense.queries_per_kv if role in (QUERY, OUTPUT) else 1
    return np.broadcast_to(dims, (dense.num_kv_heads, repeats, dense.head_dim)).reshape(-1)


def dead_rows(layer: LayerPlan, role: str) -> NDArray[np.bool_]:
    """Flag the rows of a query, key or value projection whose dimension is dead, [rows]."""
    alive = layer.value_dims if role == VALUE else layer.key_dims
    assert role in (QUERY, KEY, VALUE), role
    return ~np.isin(dims_of_group(layer, role), np.asarray(alive, np.int64))
