"""The gate sites that pruning may close, the weights each gate removes, and ranks of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import ATTENTION, DOWN, MLP, MLP_ROLES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates.keys import (
    EXPERTS,
    HEADS,
    KV_GROUPS,
    MLP_UNITS,
    ROWS,
    GateSite,
    coupled_sites,
    linear_sites,
)

# Each has a budget of its own: under a common one, attention collapses. The order is the one of
# goals, logs and checkpoints of the gate phase.
BLOCK_KINDS = (MLP, ATTENTION)

# One number per gate, by gate key: importance scores, logits or read-outs.
GateValues = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class PrunableSite:
    """A gate site, its kind of block, and the number of weights that each of its gates removes.

    A site of whole experts names for each of them the linear that writes its output.
    """

    gate: GateSite
    block: str
    unit_weights: int
    experts: tuple[str, ...] = ()


def unit_sites(spec: ModelSpec) -> tuple[PrunableSite, ...]:
    """Return two sites per layer: MLP units, and KV groups (or heads, if each has its own KV).

    A mixture has a site of units for every expert. Where one norm spans all heads, attention has
    none: closing a group would not remove it.
    """
    sites = []
    for gate in coupled_sites(spec):
        shape = spec.layers[gate.layer]
        attention_kind = HEADS if shape.queries_per_kv == 1 else KV_GROUPS
        if gate.kind not in (MLP_UNITS, attention_kind):
            continue
        block = MLP if gate.kind == MLP_UNITS else ATTENTION
        if block == ATTENTION and spec.family.has_joint_head_norms:
            continue
        weights = _block_weights(spec, gate.layer, block)
        num_gates = shape.mlp_units if block == MLP else gate.num_gates
        sites.append(PrunableSite(gate, block, weights // num_gates))
    return tuple(sites)


def expert_sites(spec: ModelSpec) -> tuple[PrunableSite, ...]:
    """Return one site per mixture: the experts that its router chooses among."""
    sites = []
    for gate in coupled_sites(spec):
        if gate.kind == EXPERTS:
            shape = spec.layers[gate.layer]
            per_unit = _block_weights(spec, gate.layer, MLP) // shape.mlp_units
            writers = (
                spec.family.expert_linear(gate.layer, i, DOWN) for i in range(gate.num_gates)
            )
            weights = per_unit * sum(shape.experts) // gate.num_gates
            sites.append(PrunableSite(gate, MLP, weights, tuple(writers)))
    return tuple(sites)


def row_col_sites(spec: ModelSpec) -> tuple[PrunableSite, ...]:
    """Return two sites per linear of the blocks: its rows and its columns."""
    sites = []
    for gate in linear_sites(spec):
        roles = spec.modules(gate.layer)[gate.module]
        block = MLP if roles[0] in MLP_ROLES else ATTENTION
        rows, columns = spec.module_shape(gate.layer, gate.module)
        sites.append(PrunableSite(gate, block, columns if gate.side == ROWS else rows))
    return tuple(sites)


def num_block_weights(spec: ModelSpec, block: str) -> int:
    """Count the linear weights in all blocks of one kind."""
    return sum(_block_weights(spec, index, block) for index in range(len(spec.layers)))


def _block_weights(spec: ModelSpec, layer: int, block: str) -> int:
    return sum(
        rows * columns
        for role, (rows, columns) in spec.linear_shapes(layer).items()
        if (role in MLP_ROLES) == (block == MLP)
    )


def quantiles_by_block(
    sites: Sequence[PrunableSite], scores: GateValues
) -> dict[str, NDArray[np.float64]]:
    """Return the rank of each score within its kind of block, from 0 for the lowest to 1."""
    quantiles: dict[str, NDArray[np.float64]] = {}
    for block in BLOCK_KINDS:
        keys = [site.gate.key for site in sites if site.block == block]
        if keys:
            quantiles |= zip(keys, _quantiles([scores[key] for key in keys]), strict=True)
    return quantiles


def _quantiles(arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    joined = np.concatenate(arrays)
    ranks = np.empty(joined.size)
    ranks[np.argsort(joined, kind="stable")] = np.arange(joined.size)
    return np.split(ranks / max(joined.size - 1, 1), np.cumsum([a.size for a in arrays])[:-1])
