"""Close the lowest-ranked MLP units and attention groups until the Plan removes the target.

Attention groups are coarse, so their number comes first: nearest to their share of the target, or
to the number that costs least. MLP units then make the total exact by bisection on the removal that
the compiled Plan states. Units may close in blocks, of those that rank together, so that widths
stay multiples.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.training.sites import Scores, TrainedSite, unit_sites
from sgate_serve.training.snap import (
    TOLERANCE,
    Choice,
    Removed,
    Snap,
    first_reaching,
    removed_by_plan,
    unreachable,
)
from sgate_serve.training.train_options import COUPLED

Units = NDArray[np.int64]

KEPT = "every block keeps one unit and one KV group"


def snap_units(
    spec: ModelSpec,
    choice: Choice,
    target: float,
    base_fingerprint: str,
    removed: Removed = removed_by_plan,
) -> Snap:
    """Close the gates of lowest score until they remove `target` of the block weights.

    Every block keeps its best unit or group: a layer without attention or MLP is a decision of
    its own. Raises TrainingError if no number of units comes within the tolerance.
    """
    sites = unit_sites(spec)
    orders = _closing_orders(sites, choice.scores, choice.block)

    def close(units: int, groups: int) -> Snap:
        closed = [*orders[MLP][:units], *orders[ATTENTION][:groups]]
        gates = _gates(spec, choice, closed, base_fingerprint)
        return Snap(gates, removed(spec, gates))

    most = close(len(orders[MLP]), len(orders[ATTENTION]))
    if most.removed < target - TOLERANCE:
        raise unreachable(target, most, KEPT)
    tried: list[Snap] = []
    total = sum(layer.num_kv_heads for layer in spec.layers)
    wanted = target * total if choice.num_groups is None else choice.num_groups
    for groups in sorted(range(len(orders[ATTENTION]) + 1), key=lambda count: abs(count - wanted)):
        of_units = partial(close, groups=groups)
        units = first_reaching(of_units, 0, len(orders[MLP]), target)
        tried += [of_units(count) for count in {max(units - 1, 0), units}]
        nearest = min(tried, key=lambda snap: snap.miss(target))
        if nearest.miss(target) <= TOLERANCE:
            return nearest
    raise unreachable(target, min(tried, key=lambda snap: snap.miss(target)), KEPT)


def cheapest_num_groups(spec: ModelSpec, costs: Scores, target: float, block: int = 1) -> int:
    """Return how many attention groups close where what closes costs least and makes the target.

    `costs` estimate what the loss rises by if a gate closes, as Fisher scores do, so that they add
    up, and those of MLP units compare with those of groups.
    """
    weights = {site.gate.key: site.unit_weights for site in unit_sites(spec)}
    sums = {}
    for kind, order in _closing_orders(unit_sites(spec), costs, block).items():
        parts = [(weights[key] * len(units), costs[key][units].sum()) for key, units in order]
        sums[kind] = np.cumsum([(0.0, 0.0), *parts], axis=0).T
    (unit_weights, unit_costs), (group_weights, group_costs) = sums[MLP], sums[ATTENTION]
    # The number of MLP parts that make the rest, which may be more than there are.
    rest = target * spec.num_gateable - group_weights
    needed = np.searchsorted(unit_weights, rest)
    totals = group_costs + np.append(unit_costs, np.inf)[needed]
    return int(totals.argmin())


def _closing_orders(
    sites: Sequence[TrainedSite], scores: Scores, block: int
) -> dict[str, list[tuple[str, Units]]]:
    return {
        MLP: _closing_order(sites, scores, MLP, block),
        ATTENTION: _closing_order(sites, scores, ATTENTION, 1),
    }


def _closing_order(
    sites: Sequence[TrainedSite], scores: Scores, kind: str, size: int
) -> list[tuple[str, Units]]:
    """Return (key, `size` units) of one block kind, lowest mean score first.

    Each site's units are taken in the order of their scores; its best one is in no part.
    """
    parts: list[tuple[float, str, Units]] = []
    for key in (site.gate.key for site in sites if site.block == kind):
        order = np.argsort(scores[key], kind="stable")
        for start in range(0, order.size - size, size):
            units = order[start : start + size]
            parts.append((float(scores[key][units].mean()), key, units))
    parts.sort(key=lambda part: part[0])
    return [(key, units) for _, key, units in parts]


def _gates(
    spec: ModelSpec, choice: Choice, closed: Sequence[tuple[str, Units]], base_fingerprint: str
) -> Gates:
    values = {key: np.ones(len(score), np.float32) for key, score in choice.scores.items()}
    for key, units in closed:
        values[key][units] = 0.0
    return Gates(
        method=choice.method,
        family=spec.family.name,
        granularity=COUPLED,
        base_fingerprint=base_fingerprint,
        values=values,
    )
