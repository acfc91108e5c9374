"""Which gates a model trains, how many weights each of them takes along, and ranks of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import ATTENTION, ATTENTION_ROLES, MLP
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates.keys import (
    HEADS,
    KV_GROUPS,
    MLP_UNITS,
    ROWS,
    GateSite,
    coupled_sites,
    linear_sites,
)

# A budget for each: with one for all, attention collapses.
BLOCKS = (MLP, ATTENTION)

Scores = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TrainedSite:
    """A gate site in its block, with the weights that go when one of its gates closes."""

    gate: GateSite
    block: str
    unit_weights: int


def unit_sites(spec: ModelSpec) -> tuple[TrainedSite, ...]:
    """Return two sites per layer: MLP units, and KV groups (heads where each has its own KV)."""
    sites = []
    for gate in coupled_sites(spec):
        shape = spec.layers[gate.layer]
        attention_kind = HEADS if shape.queries_per_kv == 1 else KV_GROUPS
        if gate.kind not in (MLP_UNITS, attention_kind):
            continue
        block = MLP if gate.kind == MLP_UNITS else ATTENTION
        weights = _block_weights(spec, gate.layer, block)
        sites.append(TrainedSite(gate, block, weights // gate.num_gates))
    return tuple(sites)


def row_col_sites(spec: ModelSpec) -> tuple[TrainedSite, ...]:
    """Return two sites per linear inside the blocks: its rows and its columns."""
    sites = []
    for gate in linear_sites(spec):
        roles = spec.modules(gate.layer)[gate.module]
        block = ATTENTION if roles[0] in ATTENTION_ROLES else MLP
        rows, columns = spec.module_shape(gate.layer, gate.module)
        sites.append(TrainedSite(gate, block, columns if gate.side == ROWS else rows))
    return tuple(sites)


def num_block_weights(spec: ModelSpec, block: str) -> int:
    """Count the linear weights of all blocks of one kind."""
    return sum(_block_weights(spec, index, block) for index in range(len(spec.layers)))


def _block_weights(spec: ModelSpec, layer: int, block: str) -> int:
    return sum(
        rows * columns
        for role, (rows, columns) in spec.linear_shapes(layer).items()
        if (role in ATTENTION_ROLES) == (block == ATTENTION)
    )


def quantiles_by_block(
    sites: Sequence[TrainedSite], scores: Scores
) -> dict[str, NDArray[np.float64]]:
    """Return the rank of each score among all of its kind of block, 0 for the lowest to 1."""
    quantiles: dict[str, NDArray[np.float64]] = {}
    for block in BLOCKS:
        keys = [site.gate.key for site in sites if site.block == block]
        if keys:
            quantiles |= zip(keys, _quantiles([scores[key] for key in keys]), strict=True)
    return quantiles


def _quantiles(arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    joined = np.concatenate(arrays)
    ranks = np.empty(joined.size)
    ranks[np.argsort(joined, kind="stable")] = np.arange(joined.size)
    return np.split(ranks / max(joined.size - 1, 1), np.cumsum([a.size for a in arrays])[:-1])
