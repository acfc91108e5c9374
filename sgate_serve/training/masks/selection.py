"""The selection of gates that close, so that the Plan removes the target; the others stay open.

Holds the parts common to both granularities: the ranking, the measure, the search, and the error
for a target out of reach. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from converters.rules import ModelFacts, compile_plan, zeros_of_masks
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan import Plan
from sgate_serve.plan.figures import removed
from sgate_serve.training.masks.prunable_sites import GateValues

TOLERANCE = 0.005

# The fraction of the block weights that gates remove from a model.
Removed = Callable[[ModelSpec, Gates], float]


@dataclass(frozen=True)
class Ranking:
    """The input of a selection: gates close in ascending order of `scores`.

    Open gates keep their `read_outs`, or 1 if there are none. MLP units close `gate_block` at a
    time. `num_groups` attention groups close; by default, the target's share of them. `method` says
    where the scores come from.
    """

    scores: GateValues
    read_outs: GateValues | None = None
    gate_block: int = 1
    method: str = ""
    num_groups: int | None = None


@dataclass(frozen=True)
class Selection:
    """Gates that are exactly 0 or open, and the fraction of the block weights they remove."""

    gates: Gates
    removed: float

    def miss(self, target: float) -> float:
        return abs(self.removed - target)


def compile_gates(spec: ModelSpec, gates: Gates) -> Plan:
    """Return the Plan of `gates`, with every bias taken as nonzero."""
    zeros = zeros_of_masks(spec, gates.masks(spec), {})
    return compile_plan(ModelFacts(spec, zeros), gates.base_fingerprint)


def removed_by_plan(spec: ModelSpec, gates: Gates) -> float:
    """Return the fraction that the compiled Plan of `gates` removes, which `--target` refers to."""
    return removed(compile_gates(spec, gates), spec)


def first_reaching(close: Callable[[int], Selection], low: int, high: int, target: float) -> int:
    """Return the smallest count in [low, high] whose selection removes `target`, or `high`."""
    while low < high:
        middle = (low + high) // 2
        if close(middle).removed < target:
            low = middle + 1
        else:
            high = middle
    return low


def unreachable(target: float, nearest: Selection, reason: str) -> TrainingError:
    """Return the error for a target that no selection reaches in this model."""
    return TrainingError(
        f"--target {target}: the nearest that this model can reach is {nearest.removed:.3f}, "
        f"because {reason}; use that target"
    )
