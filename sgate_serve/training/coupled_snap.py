"""Close the lowest-ranked MLP units and attention groups until the Plan removes the target.

Attention groups are coarse, so their number comes first, the nearest to their own budget; MLP
units then make the total exact by bisection on the removal that the compiled Plan states.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from sgate_serve.family import ATTENTION, MLP
from sgate_serve.gates import Gates
from sgate_serve.spec import ModelSpec
from sgate_serve.training.options import COUPLED
from sgate_serve.training.sites import Scores, TrainedSite, unit_sites
from sgate_serve.training.snap import (
    METHOD,
    TOLERANCE,
    Removed,
    Snap,
    first_reaching,
    removed_by_plan,
    unreachable,
)

KEPT = "every block keeps one unit and one KV group"


def snap_units(
    spec: ModelSpec,
    scores: Scores,
    target: float,
    base_fingerprint: str,
    removed: Removed = removed_by_plan,
) -> Snap:
    """Close the gates of lowest score until they remove `target` of the block weights.

    Every block keeps its best unit or group: a layer without attention or MLP is a decision of
    its own. Raises TrainingError if no number of units comes within one percentage point.
    """
    orders = {block: _closing_order(unit_sites(spec), scores, block) for block in (MLP, ATTENTION)}

    def close(units: int, groups: int) -> Snap:
        closed = [*orders[MLP][:units], *orders[ATTENTION][:groups]]
        gates = _gates(spec, scores, closed, base_fingerprint)
        return Snap(gates, removed(spec, gates))

    most = close(len(orders[MLP]), len(orders[ATTENTION]))
    if most.removed < target - TOLERANCE:
        raise unreachable(target, most, KEPT)
    tried: list[Snap] = []
    for groups in _nearest_first(spec, len(orders[ATTENTION]), target):
        of_units = partial(close, groups=groups)
        units = first_reaching(of_units, 0, len(orders[MLP]), target)
        tried += [of_units(count) for count in {max(units - 1, 0), units}]
        nearest = min(tried, key=lambda snap: snap.miss(target))
        if nearest.miss(target) <= TOLERANCE:
            return nearest
    raise unreachable(target, min(tried, key=lambda snap: snap.miss(target)), KEPT)


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


def _gates(
    spec: ModelSpec, scores: Scores, closed: Sequence[tuple[str, int]], base_fingerprint: str
) -> Gates:
    values = {key: np.ones(len(score), np.float32) for key, score in scores.items()}
    for key, unit in closed:
        values[key][unit] = 0.0
    return Gates(
        method=METHOD,
        family=spec.family.name,
        granularity=COUPLED,
        base_fingerprint=base_fingerprint,
        values=values,
    )
