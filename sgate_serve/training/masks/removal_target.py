"""What is to be removed: a fraction of the block weights, or of the seconds that a model takes.

Selections close gates until a target is met, whichever it is. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from converters.rules import (
    ModelFacts,
    closed_experts_of_masks,
    compile_plan,
    zeros_of_masks,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan import Plan
from sgate_serve.plan.block_times import BlockTimes, PhaseTimes
from sgate_serve.plan.figures import removed
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.training.masks.prunable_sites import PrunableSite

# The fraction that gates remove from a model.
Removed = Callable[[ModelSpec, Gates], float]


class RemovalTarget(Protocol):
    """A fraction of a whole to remove, and how the whole is counted."""

    @property
    def fraction(self) -> float:
        """The fraction of the whole to remove."""

    def removed(self, spec: ModelSpec, gates: Gates) -> float:
        """Return the fraction of the whole that the compiled Plan of gates removes."""

    def whole(self, spec: ModelSpec) -> float:
        """Return the size of the dense model, in weights or seconds."""

    def size(self, site: PrunableSite, width: int) -> float:
        """Return what a block weighs or takes with `width` open gates; it rises with the width."""

    def unreachable(self, nearest: float, reason: str) -> TrainingError:
        """Return the error for a model of which at most, or most nearly, `nearest` can go."""


def compile_gates(spec: ModelSpec, gates: Gates) -> Plan:
    """Return the Plan of `gates`, with every bias taken as nonzero."""
    masks = gates.masks(spec)
    zeros, closed = zeros_of_masks(spec, masks, {}), closed_experts_of_masks(spec, masks)
    return compile_plan(ModelFacts(spec, zeros, closed_experts=closed), gates.base_fingerprint)


def removed_by_plan(spec: ModelSpec, gates: Gates) -> float:
    """Return the fraction of the block weights that the compiled Plan of `gates` removes."""
    return removed(compile_gates(spec, gates), spec)


@dataclass(frozen=True)
class WeightTarget:
    """`--target`: a fraction of the block weights, as `measure` counts them."""

    fraction: float
    measure: Removed = removed_by_plan

    def removed(self, spec: ModelSpec, gates: Gates) -> float:
        return self.measure(spec, gates)

    def whole(self, spec: ModelSpec) -> float:
        return spec.num_gateable

    def size(self, site: PrunableSite, width: int) -> float:
        return site.unit_weights * width

    def unreachable(self, nearest: float, reason: str) -> TrainingError:
        return TrainingError(
            f"--target {self.fraction}: the nearest that this model can reach is {nearest:.3f}, "
            f"because {reason}; use that target"
        )


@dataclass(frozen=True)
class SpeedTarget:
    """`--target-speedup`: dense over pruned seconds of one phase, by a table of block times."""

    speedup: float
    times: BlockTimes
    phase: str

    @property
    def fraction(self) -> float:
        return 1 - 1 / self.speedup

    @cached_property
    def phase_times(self) -> PhaseTimes:
        return self.times.phase(self.phase)

    def removed(self, spec: ModelSpec, gates: Gates) -> float:
        return 1 - 1 / self.predicted(compile_gates(spec, gates), spec)

    def predicted(self, plan: Plan, spec: ModelSpec) -> float:
        """Return the speedup of a plan over the dense model."""
        return self.whole(spec) / self.phase_times.seconds(pruned_spec(plan, spec))

    def whole(self, spec: ModelSpec) -> float:
        return self.phase_times.seconds(spec)

    def size(self, site: PrunableSite, width: int) -> float:
        return self.phase_times.blocks[site.block].at(width)

    def unreachable(self, nearest: float, reason: str) -> TrainingError:
        return TrainingError(
            f"--target-speedup {self.speedup:g}: the nearest that this model can reach is "
            f"{1 / (1 - nearest):.3f} in {self.phase} on engine {self.times.engine} in "
            f"{self.times.precision}, because {reason}; use that speedup"
        )
