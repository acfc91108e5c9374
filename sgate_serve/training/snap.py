"""The end of gate training: gates become exactly 0 or open, so that the Plan removes the target.

What both granularities share: what is measured, the search, and the refusal. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from converters.rules import ModelFacts, compile_plan, zeros_of_masks
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan import Plan
from sgate_serve.plan.figures import removed
from sgate_serve.training.sites import Scores

TOLERANCE = 0.005

# The fraction of the block weights that gates remove from a model.
Removed = Callable[[ModelSpec, Gates], float]


@dataclass(frozen=True)
class Choice:
    """What a snap chooses from: gates rank by `scores`; open ones keep `read_outs`, without any 1.

    MLP units close `block` at a time. Of attention groups `num_groups` close, without it the
    target's share of them. `method` names what made the scores.
    """

    scores: Scores
    read_outs: Scores | None = None
    block: int = 1
    method: str = ""
    num_groups: int | None = None


@dataclass(frozen=True)
class Snap:
    """Gates that are exactly 0 or open, and the fraction of the block weights that they remove."""

    gates: Gates
    removed: float

    def miss(self, target: float) -> float:
        return abs(self.removed - target)


def compile_gates(spec: ModelSpec, gates: Gates) -> Plan:
    """Return the Plan of `gates`; every bias counts as live."""
    zeros = zeros_of_masks(spec, gates.masks(spec), {})
    return compile_plan(ModelFacts(spec, zeros), gates.base_fingerprint)


def removed_by_plan(spec: ModelSpec, gates: Gates) -> float:
    """Return what the compiled Plan of `gates` removes: what `--target` means."""
    return removed(compile_gates(spec, gates), spec)


def first_reaching(close: Callable[[int], Snap], low: int, high: int, target: float) -> int:
    """Return the smallest count in [low, high] whose snap removes `target`, or `high`."""
    while low < high:
        middle = (low + high) // 2
        if close(middle).removed < target:
            low = middle + 1
        else:
            high = middle
    return low


def unreachable(target: float, nearest: Snap, reason: str) -> TrainingError:
    """Return the error of a target that no snap of this model comes near."""
    return TrainingError(
        f"--target {target}: the nearest that this model can come is {nearest.removed:.3f}, as "
        f"{reason}; ask for that"
    )
