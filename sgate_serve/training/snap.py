"""Close the lowest-ranked gates so that the Plan removes what was asked. Pure.

Attention groups are coarse, so their number comes first, the nearest to their own budget; MLP
units then make the total exact by bisection on the removal that the compiled Plan states.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converters.rules import compile_plan, zeros_of_masks
from sgate_serve.errors import TrainingError
from sgate_serve.family import ATTENTION, MLP
from sgate_serve.gates import Gates
from sgate_serve.plan import Plan
from sgate_serve.spec import ModelSpec
from sgate_serve.training.sites import Scores, TrainedSite, trained_sites

TOLERANCE = 0.01
METHOD = "clamped-tanh gates, augmented Lagrangian, top-k snap"


@dataclass(frozen=True)
class Snap:
    """Gates that are exactly 0 or 1, and the Plan that they compile to."""

    gates: Gates
    plan: Plan


def snap(spec: ModelSpec, scores: Scores, target: float, base_fingerprint: str) -> Snap:
    """Close the gates of lowest score until the Plan removes `target` of the block weights.

    Every block keeps its best unit or group: a layer without attention or MLP is a decision of
    its own. Raises TrainingError if no number of units comes within one percentage point.
    """
    orders = {
        block: _closing_order(trained_sites(spec), scores, block) for block in (MLP, ATTENTION)
    }

    def close(units: int, groups: int) -> Snap:
        closed = [*orders[MLP][:units], *orders[ATTENTION][:groups]]
        return _compile(spec, scores, closed, base_fingerprint)

    most = close(len(orders[MLP]), len(orders[ATTENTION]))
    if most.plan.removed(spec) < target - TOLERANCE:
        raise _unreachable(target, most, spec)
    tried = []
    for groups in _nearest_first(spec, len(orders[ATTENTION]), target):
        tried.append(_bisect(partial(close, groups=groups), len(orders[MLP]), spec, target))
        if _miss(tried[-1], spec, target) <= TOLERANCE:
            return tried[-1]
    raise _unreachable(target, min(tried, key=lambda one: _miss(one, spec, target)), spec)


def _unreachable(target: float, nearest: Snap, spec: ModelSpec) -> TrainingError:
    return TrainingError(
        f"--target {target}: the nearest that this model can come is "
        f"{nearest.plan.removed(spec):.3f}, as every block keeps one unit and one KV group; ask "
        "for that"
    )


def check_reachable(spec: ModelSpec, target: float) -> None:
    """Raise TrainingError, before anything is trained, if no gates of this model meet `target`."""
    flat = {s.gate.key: np.zeros(s.gate.num_gates, np.float32) for s in trained_sites(spec)}
    snap(spec, flat, target, "")


def _closing_order(
    sites: Sequence[TrainedSite], scores: Scores, block: str
) -> list[tuple[str, int]]:
    """Return (key, unit) of one block kind, lowest score first, without each site's best unit."""
    units: list[tuple[float, str, int]] = []
    for key in (site.gate.key for site in sites if site.block == block):
        best = int(np.argmax(scores[key]))
        pairs = enumerate(scores[key].tolist())
        units += [(score, key, unit) for unit, score in pairs if unit != best]
    return [(key, unit) for _, key, unit in sorted(units)]


def _nearest_first(spec: ModelSpec, num_closable: int, target: float) -> Iterator[int]:
    """Yield numbers of attention groups, nearest to the target share of all groups first."""
    total = sum(layer.num_kv_heads for layer in spec.layers)
    yield from sorted(range(num_closable + 1), key=lambda count: abs(count - target * total))


def _bisect(close: Callable[[int], Snap], num_units: int, spec: ModelSpec, target: float) -> Snap:
    """Return the number of closed MLP units whose Plan comes nearest to the target."""
    low, high = 0, num_units
    while low < high:
        middle = (low + high) // 2
        if close(middle).plan.removed(spec) < target:
            low = middle + 1
        else:
            high = middle
    candidates = [close(units) for units in {max(low - 1, 0), low}]
    return min(candidates, key=lambda snapped: _miss(snapped, spec, target))


def _miss(snapped: Snap, spec: ModelSpec, target: float) -> float:
    return abs(snapped.plan.removed(spec) - target)


def _compile(
    spec: ModelSpec, scores: Scores, closed: Sequence[tuple[str, int]], base_fingerprint: str
) -> Snap:
    values = {key: np.ones(len(score), np.float32) for key, score in scores.items()}
    for key, unit in closed:
        values[key][unit] = 0.0
    gates = Gates(
        method=METHOD,
        family=spec.family.name,
        granularity="coupled",
        base_fingerprint=base_fingerprint,
        values=values,
    )
    return Snap(gates, compile_gates(spec, gates))


def compile_gates(spec: ModelSpec, gates: Gates) -> Plan:
    """Return the Plan of `gates`; every bias counts as live, which can only keep a block."""
    zeros = zeros_of_masks(spec, gates.masks(spec), {})
    return compile_plan(spec, zeros, gates.base_fingerprint)
