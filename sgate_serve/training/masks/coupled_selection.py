"""Selection of coupled gates: closes the lowest-ranked until the Plan removes the target.

Attention groups are coarse, so their number is fixed first: their share of the target, or the
number that costs least. Bisection on the MLP units, measured by the compiled Plan, then meets the
target, of weights or of seconds. Units of similar rank may close in blocks, so that widths stay
multiples of the block.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.plan.figures import TOLERANCE
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite, unit_sites
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.selection import Ranking, Selection, first_reaching, with_order
from sgate_serve.training.train_options import COUPLED

Units = NDArray[np.int64]

KEPT = "every block keeps one unit and one KV group"
HEADS_KEPT = "every MLP keeps one unit, and heads under one norm stay"
COARSE = "its KV groups and blocks of units are too coarse for a step between"


def select_units(
    spec: ModelSpec, ranking: Ranking, target: RemovalTarget, base_fingerprint: str
) -> Selection:
    """Close the gates of lowest score until they remove the target.

    Every block keeps its best unit or group, so that no attention or MLP is removed as a whole.
    Raises TrainingError if no number of units comes within the tolerance.
    """
    sites = unit_sites(spec)
    orders = _closing_orders(sites, ranking.scores, ranking.gate_block)

    def close(units: int, groups: int) -> Selection:
        closed = [*orders[MLP][:units], *orders[ATTENTION][:groups]]
        gates = _gates(spec, ranking, closed, base_fingerprint)
        return Selection(gates, target.removed(spec, gates))

    most = close(len(orders[MLP]), len(orders[ATTENTION]))
    if most.removed < target.fraction - TOLERANCE:
        reason = HEADS_KEPT if spec.family.has_joint_head_norms else KEPT
        raise target.unreachable(most.removed, reason)
    tried: list[Selection] = []
    total = sum(layer.num_kv_heads for layer in spec.layers)
    wanted = target.fraction * total if ranking.num_groups is None else ranking.num_groups
    for groups in sorted(range(len(orders[ATTENTION]) + 1), key=lambda count: abs(count - wanted)):
        of_units = partial(close, groups=groups)
        units = first_reaching(of_units, 0, len(orders[MLP]), target.fraction)
        tried += [of_units(count) for count in {max(units - 1, 0), units}]
        nearest = min(tried, key=lambda selection: selection.miss(target.fraction))
        if nearest.miss(target.fraction) <= TOLERANCE:
            return with_order(nearest, _next_steps(sites, ranking, orders, nearest.gates))
    raise target.unreachable(nearest.removed, COARSE)


def cheapest_num_groups(
    spec: ModelSpec, costs: GateValues, target: RemovalTarget, gate_block: int = 1
) -> int:
    """Return the number of closed attention groups that meets the target at the least total cost.

    `costs` must estimate how much the loss rises if a gate closes, as Fisher scores do: such costs
    add up, and those of MLP units and groups are comparable.
    """
    sites = {site.gate.key: site for site in unit_sites(spec)}
    open_gates = {key: site.gate.num_gates for key, site in sites.items()}
    sums = {}
    for kind, order in _closing_orders([*sites.values()], costs, gate_block).items():
        parts = [(0.0, 0.0)]
        for key, units in order:
            before = target.size(sites[key], open_gates[key])
            open_gates[key] -= len(units)
            saved = before - target.size(sites[key], open_gates[key])
            parts.append((saved, float(costs[key][units].sum())))
        sums[kind] = np.cumsum(parts, axis=0).T
    (unit_savings, unit_costs), (group_savings, group_costs) = sums[MLP], sums[ATTENTION]
    # The number of MLP parts that save the rest, which may exceed the number of all parts.
    rest = target.fraction * target.whole(spec) - group_savings
    needed = np.searchsorted(unit_savings, rest)
    totals = group_costs + np.append(unit_costs, np.inf)[needed]
    return int(totals.argmin())


def _closing_orders(
    sites: Sequence[PrunableSite], scores: GateValues, gate_block: int
) -> dict[str, list[tuple[str, Units]]]:
    return {
        MLP: _closing_order(sites, scores, MLP, gate_block),
        ATTENTION: _closing_order(sites, scores, ATTENTION, 1),
    }


def _closing_order(
    sites: Sequence[PrunableSite], scores: GateValues, kind: str, size: int
) -> list[tuple[str, Units]]:
    """Return (key, `size` units) of one kind of block, lowest mean score first.

    The units of a site are grouped in the order of their scores; its best unit is left out.
    """
    parts: list[tuple[float, str, Units]] = []
    for key in (site.gate.key for site in sites if site.block == kind):
        order = np.argsort(scores[key], kind="stable")
        for start in range(0, order.size - size, size):
            units = order[start : start + size]
            parts.append((float(scores[key][units].mean()), key, units))
    parts.sort(key=lambda part: part[0])
    return [(key, units) for _, key, units in parts]


def _next_steps(
    sites: Sequence[PrunableSite],
    ranking: Ranking,
    orders: Mapping[str, Sequence[tuple[str, Units]]],
    gates: Gates,
) -> list[tuple[str, Units]]:
    """Return what would close after `gates`, in turn: parts of MLPs and attention groups.

    Each kind of block goes on in its own order. Scores that compare across kinds close next what
    costs least for its weights; otherwise both kinds lose the same share of what they have left.
    """
    weights = {site.gate.key: site.unit_weights for site in sites}
    steps: list[tuple[float, str, Units]] = []
    for order in orders.values():
        left = [(key, units) for key, units in order if gates.values[key][units[0]]]
        places = (np.arange(len(left)) + 1) / max(len(left), 1)
        if ranking.is_joint:
            costs = [float(ranking.scores[key][units].mean()) / weights[key] for key, units in left]
            places = np.maximum.accumulate(np.array(costs))
        steps += [(place, *part) for place, part in zip(places.tolist(), left, strict=True)]
    steps.sort(key=lambda step: step[0])
    return [(key, units) for _, key, units in steps]


def _gates(
    spec: ModelSpec, ranking: Ranking, closed: Sequence[tuple[str, Units]], base_fingerprint: str
) -> Gates:
    values = {key: np.ones(len(score), np.float32) for key, score in ranking.scores.items()}
    for key, units in closed:
        values[key][units] = 0.0
    return Gates(
        method=ranking.method,
        family=spec.family.name,
        granularity=COUPLED,
        base_fingerprint=base_fingerprint,
        values=values,
    )
