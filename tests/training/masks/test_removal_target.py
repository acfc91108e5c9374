"""Targets of speed: the solver against every other choice, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from sgate_serve.errors import TrainingError
from sgate_serve.plan.block_times import DECODE, MIX, PREFILL, BlockTimes, PhaseTimes, WidthTimes
from sgate_serve.plan.figures import TOLERANCE
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.coupled_selection import cheapest_num_groups, select_units
from sgate_serve.training.masks.prunable_sites import GateValues, unit_sites
from sgate_serve.training.masks.removal_target import SpeedTarget, compile_gates
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED
from tests.training.masks.test_coupled_selection import spec_of

SPEC = spec_of(8, 4, layers=2, mlp_units=12)
# Groups: the first is dear, the others cheap. Units: in steps, as of a padded kernel.
GROUPS = WidthTimes((1, 2, 4), (0.0, 4.0, 5.0))
UNITS = WidthTimes((1, 4, 5, 8, 9, 12), (0.0, 1.0, 3.0, 3.5, 6.0, 6.0))
STEP = PhaseTimes(4.0, {"attention": GROUPS, "mlp": UNITS})
PROMPT = PhaseTimes(
    2.0, {"attention": WidthTimes((1, 2, 4), (0.0, 9.0, 20.0)), "mlp": replace(UNITS)}
)
TIMES = BlockTimes(
    "onnx", "int8", "a CPU", "2026-01-02T03:04:05+00:00", {DECODE: STEP, PREFILL: PROMPT}
)


def random_costs(seed: int, attention: float = 1.0) -> GateValues:
    rng = np.random.default_rng(seed)
    return {
        site.gate.key: (
            rng.random(site.gate.num_gates) * (attention if site.block == "attention" else 1)
        ).astype(np.float32)
        for site in unit_sites(SPEC)
    }


def least_costs_by_trying_all(costs: GateValues, target: SpeedTarget) -> dict[int, float]:
    """Return the least cost of every number of closed groups that can meet the target."""
    sites = {site.gate.key: site for site in unit_sites(SPEC)}
    orders: dict[str, list[tuple[float, str]]] = {"mlp": [], "attention": []}
    for key, site in sites.items():
        cheapest = np.sort(costs[key])[:-1]
        orders[site.block] += [(float(cost), key) for cost in cheapest]
    found: dict[int, float] = {}
    for num_groups in range(len(orders["attention"]) + 1):
        for num_units in range(len(orders["mlp"]) + 1):
            closed = sorted(orders["attention"])[:num_groups] + sorted(orders["mlp"])[:num_units]
            widths = {key: site.gate.num_gates for key, site in sites.items()}
            for _, key in closed:
                widths[key] -= 1
            seconds = target.phase_times.other + sum(
                target.size(site, widths[key]) for key, site in sites.items()
            )
            if target.whole(SPEC) / seconds >= target.speedup - 1e-9:
                cost = sum(cost for cost, _ in closed)
                found[num_groups] = min(cost, found.get(num_groups, np.inf))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("attention", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("speedup", "phase"), [(1.11, DECODE), (1.47, DECODE), (1.83, MIX)])
def test_the_number_of_groups_is_the_best_of_all(
    seed: int, attention: float, speedup: float, phase: str
) -> None:
    costs, target = random_costs(seed, attention), SpeedTarget(speedup, TIMES, phase)
    tried = least_costs_by_trying_all(costs, target)
    cheapest = cheapest_num_groups(SPEC, costs, target)
    assert tried[cheapest] == pytest.approx(min(tried.values()))


def test_another_phase_weighs_the_kinds_of_block_otherwise() -> None:
    costs = random_costs(0)
    step, prompt = (
        cheapest_num_groups(SPEC, costs, SpeedTarget(1.6, TIMES, phase))
        for phase in (DECODE, PREFILL)
    )
    assert step != prompt


@pytest.mark.parametrize("phase", [DECODE, PREFILL, MIX])
@pytest.mark.parametrize("speedup", [1.1, 1.3, 1.6])
def test_the_plan_is_predicted_to_be_as_fast_as_wanted(phase: str, speedup: float) -> None:
    spec = spec_of(8, 4, layers=6)
    wide = WidthTimes((1, 48, 96), (0.0, 2.0, 5.0))
    phases = {
        name: replace(times, blocks={**times.blocks, "mlp": wide})
        for name, times in TIMES.phases.items()
    }
    target = SpeedTarget(speedup, replace(TIMES, phases=phases), phase)
    costs = {
        site.gate.key: np.arange(site.gate.num_gates, dtype=np.float32) + index / 7
        for index, site in enumerate(unit_sites(spec))
    }
    groups = cheapest_num_groups(spec, costs, target)
    selection = select_units(spec, Ranking(costs, num_groups=groups), target, "base")
    predicted = target.predicted(compile_gates(spec, selection.gates), spec)
    assert abs(1 / predicted - 1 / speedup) <= TOLERANCE
    assert selection.removed == pytest.approx(1 - 1 / predicted)


def test_a_speedup_beyond_all_is_refused_with_the_largest() -> None:
    # One group and one unit in each of two layers leave 4 of 4 + 2 · (5 + 6) seconds.
    message = (
        r"--target-speedup 9: the nearest that this model can reach is 6\.500 in decode on engine "
        "onnx in int8, because "
        "every block keeps one unit and one KV group; use that speedup"
    )
    with pytest.raises(TrainingError, match=message):
        GRANULARITIES[COUPLED].check_reachable(SPEC, SpeedTarget(9, TIMES, DECODE))
    GRANULARITIES[COUPLED].check_reachable(SPEC, SpeedTarget(6.5, TIMES, DECODE))
