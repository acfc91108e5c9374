"""How many weights gates take away on average, each open with its own chance; differentiable.

What the Plan removes as a smooth function: a closed gate takes its partners along, as a unit that
is silent need not be read. Gates are taken to close independently.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from sgate_serve.architecture.activations import is_zero_at_zero
from sgate_serve.architecture.family import (
    ATTENTION,
    DOWN,
    GATE,
    KEY,
    MLP,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates.keys import COLUMNS, ROWS
from sgate_serve.training.sites import BLOCKS, num_block_weights, unit_sites

# The chance of each gate to be open, by gate key.
Chances = Mapping[str, Tensor]
# The expected fraction removed of each kind of block, [2], in the order of BLOCKS.
Removal = Callable[[Chances], Tensor]
# The chances of one layer, by role of the linear and side.
LayerChances = Callable[[str, str], Tensor]


def coupled_removal(spec: ModelSpec) -> Removal:
    """Return the expected removal of coupled gates: each takes the weights of its unit."""
    sites = unit_sites(spec)

    def removal(chances: Chances) -> Tensor:
        kept: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
        for site in sites:
            kept[site.block].append(site.unit_weights * chances[site.gate.key].sum())
        return _removed(spec, kept)

    return removal


def row_col_removal(spec: ModelSpec) -> Removal:
    """Return the expected removal of row and column gates, dead partners included."""

    def removal(chances: Chances) -> Tensor:
        kept: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
        for index, layer in enumerate(spec.layers):
            of = partial(_chances_of, chances, spec, index)
            if layer.mlp_units:
                kept[MLP].append(_kept_mlp(of, spec))
            if layer.num_heads:
                kept[ATTENTION].append(_kept_attention(of, layer, spec.family.is_rotary))
        return _removed(spec, kept)

    return removal


def _chances_of(chances: Chances, spec: ModelSpec, index: int, role: str, side: str) -> Tensor:
    chance = chances[f"{spec.family.linear(index, role)}.{side}"]
    return chance[spec.role_rows(index, role)] if side == ROWS else chance


def _kept_mlp(of: LayerChances, spec: ModelSpec) -> Tensor:
    """A unit lives while its up row and down column are open, and its gate row if act(0) = 0."""
    units = of(UP, ROWS) * of(DOWN, COLUMNS)
    if not spec.family.is_gated:
        return units.sum() * (of(UP, COLUMNS).sum() + of(DOWN, ROWS).sum())
    gated = units * of(GATE, ROWS)
    units = gated if is_zero_at_zero(spec.activation) else units
    others = of(UP, COLUMNS).sum() + of(DOWN, ROWS).sum()
    return gated.sum() * of(GATE, COLUMNS).sum() + units.sum() * others


def _kept_attention(of: LayerChances, shape: LayerShape, is_rotary: bool) -> Tensor:
    """An output column lives while its value row is open, that row while a column reads it.

    A query row lives while its key row is open, and the other way round, except where a rotary
    score mixes two dimensions.
    """
    values = of(VALUE, ROWS).view(shape.num_kv_heads, 1, shape.head_dim)
    outputs = of(OUTPUT, COLUMNS).view(shape.num_kv_heads, shape.queries_per_kv, shape.head_dim)
    is_read = 1 - (1 - outputs).prod(dim=1, keepdim=True)
    kept = (values * is_read).sum() * of(VALUE, COLUMNS).sum()
    kept = kept + (values * outputs).sum() * of(OUTPUT, ROWS).sum()
    rows = {role: of(role, ROWS) for role in (QUERY, KEY)}
    if not is_rotary and shape.queries_per_kv == 1:
        rows = dict.fromkeys(rows, rows[QUERY] * rows[KEY])
    for role in (QUERY, KEY):
        kept = kept + rows[role].sum() * of(role, COLUMNS).sum()
    return kept


def _removed(spec: ModelSpec, kept: Mapping[str, list[Tensor]]) -> Tensor:
    fractions = [
        1 - torch.stack(kept[block]).sum() / num_block_weights(spec, block) for block in BLOCKS
    ]
    return torch.stack(fractions)
