"""Which coupled gates a model trains, and how many weights each unit of them takes along."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.family import ATTENTION, ATTENTION_ROLES, MLP
from sgate_serve.gates.keys import HEADS, KV_GROUPS, MLP_UNITS, GateSite, coupled_sites
from sgate_serve.spec import ModelSpec

# A budget for each: with one for all, attention collapses.
BLOCKS = (MLP, ATTENTION)

Scores = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TrainedSite:
    """A gate site in its block, with the weights that go when one of its units goes."""

    gate: GateSite
    block: str
    unit_weights: int

    @property
    def num_weights(self) -> int:
        return self.unit_weights * self.gate.num_gates


def trained_sites(spec: ModelSpec) -> tuple[TrainedSite, ...]:
    """Return two sites per layer: MLP units, and KV groups (heads where each has its own KV)."""
    sites = []
    for gate in coupled_sites(spec):
        shape = spec.layers[gate.layer]
        attention_kind = HEADS if shape.queries_per_kv == 1 else KV_GROUPS
        if gate.kind not in (MLP_UNITS, attention_kind):
            continue
        block = MLP if gate.kind == MLP_UNITS else ATTENTION
        weights = sum(
            rows * columns
            for role, (rows, columns) in spec.linear_shapes(gate.layer).items()
            if (role in ATTENTION_ROLES) == (block == ATTENTION)
        )
        sites.append(TrainedSite(gate, block, weights // gate.num_gates))
    return tuple(sites)
