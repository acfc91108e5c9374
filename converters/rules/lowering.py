"""Rule 12: zeros that slicing cannot remove are gathered, scattered or kept, whichever is cheapest.

Removing zero rows from a matrix requires scattering its output; removing zero columns requires
gathering its input. Both are exact, and both cost index work: a cut is made where the weights that
it saves are worth more than that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from converters.rules.facts import Flags
from converters.rules.fixpoint import indices_of
from converters.rules.layer_state import LayerState
from sgate_serve.architecture.family import (
    ATTENTION,
    BLOCKS,
    DOWN,
    MLP_ROLES,
    OUTPUT,
    READERS,
)
from sgate_serve.plan import Lowering, Revival

# A projection outside the fused matmul costs a launch of its own, in addition to its gather.
SPLIT_LAUNCHES = 1

Kind = Literal["rows", "columns"]
How = Literal["scatter", "gather", "dense"]


@dataclass(frozen=True)
class _Cut:
    """Flags over one side of one role: `stays` are the dimensions that slicing keeps.

    `kept` are those of them that are stored.
    """

    stays: Flags
    kept: Flags

    @property
    def num_zero(self) -> int:
        return int(self.stays.sum() - self.kept.sum())


def nonzero_weights(state: LayerState) -> int:
    """Count the weights in rows and columns that are alive and not zero."""
    total = 0
    for role in state.zeros:
        rows, columns = state.stored(role)
        total += int(rows.sum()) * int(columns.sum())
    return total


def lower_layer(
    state: LayerState, revivals: Sequence[Revival], align: int, price: int
) -> Iterator[Lowering]:
    """Yield how the zero rows and columns of a layer's linears are lowered, columns first.

    `price` is the cost of one index operation in weights. Widths after a cut are multiples of
    `align`.
    """
    state = _with_revived(state, revivals)
    chosen: list[Lowering] = []
    for block in _blocks(state):
        chosen += _inputs(state, block, align, price)
    if state.has(ATTENTION):
        chosen += _one(state, OUTPUT, "columns", align, price, chosen)
    for module in _modules(state):
        chosen += _rows(state, module, align, price, chosen)
    yield from chosen


def _with_revived(state: LayerState, revivals: Sequence[Revival]) -> LayerState:
    """Return the state with the columns of revived units and heads zero, as they are stored."""
    for axis, role, width in (("mlp_units", DOWN, 1), ("heads", OUTPUT, state.shape.head_dim)):
        revived = [i for one in revivals if one.axis == axis for i in one.indices]
        if revived:
            zeros = state.zeros[role]
            flags = np.isin(np.arange(zeros.columns.size) // width, revived)
            state = state.with_zeros(role, replace(zeros, columns=zeros.columns | flags))
    return state


def _blocks(state: LayerState) -> list[str]:
    """Return the blocks with linears that may have index vectors; those of experts have none."""
    blocks = (ATTENTION,) if state.shape.experts else BLOCKS
    return [block for block in blocks if state.has(block)]


def _modules(state: LayerState) -> list[tuple[str, ...]]:
    roles = [role for block in _blocks(state) for role in _roles_of(state, block)]
    return list(dict.fromkeys(state.family.fused_roles(state.index, role) for role in roles))


def _roles_of(state: LayerState, block: str) -> tuple[str, ...]:
    writer = OUTPUT if block == ATTENTION else DOWN
    return (*(role for role in READERS[block] if role in state.zeros), writer)


def _inputs(state: LayerState, block: str, align: int, price: int) -> list[Lowering]:
    """Gather the inputs of a block once for all its readers, once for each, or not at all."""
    roles = tuple(role for role in READERS[block] if role in state.zeros)
    cuts = {role: _cut(state, role, "columns") for role in roles}
    heights = {role: int(_cut(state, role, "rows").stays.sum()) for role in roles}
    union = np.logical_or.reduce([cut.kept for cut in cuts.values()])
    stays = cuts[roles[0]].stays
    together = _aligned(_Cut(stays, union), align)
    saved = together.num_zero * sum(heights.values())
    shared = [_lowering(roles, "columns", together, saved, price)]
    modules = list(dict.fromkeys(state.family.fused_roles(state.index, role) for role in roles))
    if len(modules) == 1:
        return [one for one in shared if one.saved]
    apart = []
    for module in modules:
        own = _Cut(stays, np.logical_or.reduce([cuts[role].kept for role in module]))
        cut = _aligned(own, align)
        saved = cut.num_zero * sum(heights[role] for role in module)
        apart.append(_lowering(module, "columns", cut, saved, price * (1 + SPLIT_LAUNCHES)))
    best = max((shared, apart), key=_gain)
    return [one for one in best if one.saved]


def _rows(
    state: LayerState, roles: tuple[str, ...], align: int, price: int, chosen: Sequence[Lowering]
) -> list[Lowering]:
    """Scatter the outputs of one module, all its roles at once."""
    if len(roles) == 1:
        return _one(state, roles[0], "rows", align, price, chosen)
    width = _width(state, roles[0], "columns", chosen)
    cuts = {role: _cut(state, role, "rows") for role in roles}
    # The module needs at least one row, but a role in it may have none.
    least = {roles[-1]: int(not any(cut.kept.any() for cut in cuts.values()))}
    cuts = {role: _aligned(cut, align, least=least.get(role, 0)) for role, cut in cuts.items()}
    saved = sum(cut.num_zero for cut in cuts.values()) * width
    if not saved:
        return []
    how: How = "scatter" if saved > price else "dense"
    return [
        Lowering((role,), "rows", how, indices_of(cut.kept), cut.num_zero * width, price)
        for role, cut in cuts.items()
        if cut.num_zero
    ]


def _one(
    state: LayerState, role: str, side: Kind, align: int, price: int, chosen: Sequence[Lowering]
) -> list[Lowering]:
    cut = _aligned(_cut(state, role, side), align)
    other = _width(state, role, "rows" if side == "columns" else "columns", chosen)
    saved = cut.num_zero * other
    return [_lowering((role,), side, cut, saved, price)] if saved else []


def _width(state: LayerState, role: str, side: str, chosen: Sequence[Lowering]) -> int:
    for one in chosen:
        if role in one.roles and one.side == side and one.how != "dense":
            return len(one.kept)
    return int(_cut(state, role, side).stays.sum())


def _cut(state: LayerState, role: str, side: str) -> _Cut:
    """Return the dimensions of a side that slicing keeps, and those of them that are not zero."""
    rows, columns = state.stored(role)
    if side == "rows":
        return _Cut(_slice(state, role, is_row=True), rows & _slice(state, role, is_row=True))
    stays = _slice(state, role, is_row=False)
    return _Cut(stays, columns & stays)


def _slice(state: LayerState, role: str, *, is_row: bool) -> Flags:
    """Flag the dimensions that slicing keeps: whole units, heads and residual dimensions."""
    is_writer = role in (OUTPUT, DOWN)
    if is_writer == is_row:
        return state.hidden
    if role in MLP_ROLES:
        return state.mlp_units
    heads, width = state.shape.dims_of(role)
    return np.repeat(state.alive(heads), width)


def _aligned(cut: _Cut, align: int, least: int = 1) -> _Cut:
    """Keep some zeros too, the first ones, so that the width is a multiple of `align`."""
    count = max(int(cut.kept.sum()), least)
    wanted = min(-(-count // align) * align, int(cut.stays.sum()))
    spare = np.flatnonzero(cut.stays & ~cut.kept)[: wanted - int(cut.kept.sum())]
    kept = cut.kept.copy()
    kept[spare] = True
    return _Cut(cut.stays, kept)


def _lowering(
    roles: tuple[str, ...], side: Literal["rows", "columns"], cut: _Cut, saved: int, price: int
) -> Lowering:
    how: How = "dense" if saved <= price else ("scatter" if side == "rows" else "gather")
    return Lowering(roles, side, how, indices_of(cut.kept), saved, price)


def _gain(choice: Sequence[Lowering]) -> int:
    return sum(one.saved - one.cost for one in choice if one.how != "dense")
