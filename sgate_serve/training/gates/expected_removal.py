"""The expected fraction of weights that gates remove: a smooth version of what the Plan removes.

Every gate is open with a probability of its own, independent of the others. A closed gate also
removes its partners: nobody needs to read a unit that is always zero.
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
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates.keys import COLUMNS, ROWS
from sgate_serve.training.masks.prunable_sites import BLOCK_KINDS, num_block_weights, unit_sites

# The probability that each gate is open, by gate key.
OpenProbabilities = Mapping[str, Tensor]
# The expected fraction removed of each kind of block, [2], in the order of BLOCK_KINDS.
Removal = Callable[[OpenProbabilities], Tensor]
# The probabilities of one layer, by the role of the linear and the side.
LayerProbabilities = Callable[[str, str], Tensor]


def coupled_removal(spec: ModelSpec) -> Removal:
    """Return the expected removal of coupled gates; each removes the weights of its unit.

    A kind of block without gates keeps everything.
    """
    sites = unit_sites(spec)

    def removal(probabilities: OpenProbabilities) -> Tensor:
        kept: dict[str, list[Tensor]] = {block: [] for block in BLOCK_KINDS}
        for site in sites:
            kept[site.block].append(site.unit_weights * probabilities[site.gate.key].sum())
        some = next(iter(probabilities.values()))
        for block in BLOCK_KINDS:
            if not kept[block]:
                kept[block].append(some.new_tensor(num_block_weights(spec, block)))
        return _removed(spec, kept)

    return removal


def row_col_removal(spec: ModelSpec) -> Removal:
    """Return the expected removal of row and column gates, including dead partners."""

    def removal(probabilities: OpenProbabilities) -> Tensor:
        kept: dict[str, list[Tensor]] = {block: [] for block in BLOCK_KINDS}
        for index, layer in enumerate(spec.layers):
            of = partial(_probability_of, probabilities, spec, index)
            if layer.mlp_units:
                kept[MLP].append(_kept_mlp(of, spec))
            if layer.num_heads:
                kept[ATTENTION].append(_kept_attention(of, spec, index))
        return _removed(spec, kept)

    return removal


def _probability_of(
    probabilities: OpenProbabilities, spec: ModelSpec, index: int, role: str, side: str
) -> Tensor:
    probability = probabilities[f"{spec.family.linear(index, role)}.{side}"]
    return probability[spec.role_rows(index, role)] if side == ROWS else probability


def _kept_mlp(of: LayerProbabilities, spec: ModelSpec) -> Tensor:
    """Return the weights kept: a unit needs its up row, its down column, and its gate row.

    The gate row is needed by the other two linears only if the activation of 0 is 0.
    """
    units = of(UP, ROWS) * of(DOWN, COLUMNS)
    if not spec.family.is_gated:
        return units.sum() * (of(UP, COLUMNS).sum() + of(DOWN, ROWS).sum())
    gated = units * of(GATE, ROWS)
    units = gated if is_zero_at_zero(spec.activation) else units
    others = of(UP, COLUMNS).sum() + of(DOWN, ROWS).sum()
    return gated.sum() * of(GATE, COLUMNS).sum() + units.sum() * others


def _kept_attention(of: LayerProbabilities, spec: ModelSpec, index: int) -> Tensor:
    """Return the weights kept: output columns need their value row, and value rows a reader.

    With a norm over the values of a head they need one for any of them. Query and key rows need
    each other, except where a rotary embedding mixes two dimensions of a score. Rows that are keys
    and values count as keys.
    """
    shape, is_rotary = spec.layers[index], spec.ropes[index] is not None
    values = of(shape.value_role, ROWS).view(shape.num_kv_heads, 1, shape.head_dim)
    outputs = of(OUTPUT, COLUMNS).view(shape.num_kv_heads, shape.queries_per_kv, shape.head_dim)
    kept = (values * outputs).sum() * of(OUTPUT, ROWS).sum()
    if shape.has_values:
        unread = (1 - outputs).prod(dim=1, keepdim=True)
        unread = unread.prod(dim=2, keepdim=True) if spec.family.has_value_norm else unread
        kept = kept + (values * (1 - unread)).sum() * of(VALUE, COLUMNS).sum()
    rows = {role: of(role, ROWS) for role in (QUERY, KEY)}
    if not is_rotary and shape.queries_per_kv == 1:
        rows = dict.fromkeys(rows, rows[QUERY] * rows[KEY])
    for role in (QUERY, KEY):
        kept = kept + rows[role].sum() * of(role, COLUMNS).sum()
    return kept


def _removed(spec: ModelSpec, kept: Mapping[str, list[Tensor]]) -> Tensor:
    fractions = [
        1 - torch.stack(kept[block]).sum() / num_block_weights(spec, block) for block in BLOCK_KINDS
    ]
    return torch.stack(fractions)
