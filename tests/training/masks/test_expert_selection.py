"""The selection of whole experts: which close, how many, and how many stay."""

from typing import Any

import numpy as np
import pytest

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates.order import num_steps
from sgate_serve.plan.figures import TOLERANCE, removed
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.expert_selection import select_experts
from sgate_serve.training.masks.prunable_sites import expert_sites, unit_sites
from sgate_serve.training.masks.removal_target import WeightTarget, compile_gates
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import EXPERTS
from tests.training.small_mixtures import MIXTURES


def spec_of(family: str, **changes: Any) -> ModelSpec:
    config = {"model_type": family, **MIXTURES[family], **changes}
    return ModelSpec.from_config(config, "config.json")


@pytest.mark.parametrize("family", MIXTURES)
def test_the_weights_of_gates_add_up_to_those_of_the_blocks(family: str) -> None:
    spec = spec_of(family)
    assert sum(s.unit_weights * s.gate.num_gates for s in unit_sites(spec)) == spec.num_gateable
    per_expert = 3 * 16 * 32
    assert {site.unit_weights for site in expert_sites(spec)} == {per_expert}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("target", [0.1, 0.25, 0.3])
def test_experts_of_low_scores_close_up_to_the_target(
    family: str, is_joint: bool, target: float
) -> None:
    spec, rng = spec_of(family), np.random.default_rng(0)
    sites = expert_sites(spec)
    scores = {
        site.gate.key: ((1 + rng.random(6)) * 100**number).astype(np.float32)
        for number, site in enumerate(sites)
    }
    ranking = Ranking(scores, is_joint=is_joint)
    values = select_experts(spec, ranking, WeightTarget(target), "base").gates
    share = sites[0].unit_weights / spec.num_gateable
    assert abs(removed(compile_gates(spec, values), spec) - target) <= share / 2
    # What closes next is what a larger target closes as well.
    later = target + 0.05
    more = select_experts(spec, ranking, WeightTarget(later), "base").gates.values
    steps = [
        step
        for step in range(num_steps(values.order) + 1)
        if all((values.closed_to(step).values[key] == more[key]).all() for key in more)
    ]
    assert len(steps) == 1
    open_experts = [int(gates.sum()) for gates in values.values.values()]
    for key, gates in values.values.items():
        assert scores[key][gates == 0].max(initial=-1) < scores[key][gates == 1].min()
    if is_joint:
        closed = 12 - sum(open_experts)
        assert open_experts == [6 - min(closed, 4), 6 - max(closed - 4, 0)]
    else:
        assert abs(open_experts[0] - open_experts[1]) <= 1


@pytest.mark.parametrize(("is_joint", "target", "kept"), [(False, 0.253, 4), (True, 0.253, None)])
def test_an_even_balance_closes_the_same_number_where_that_is_near_enough(
    is_joint: bool, target: float, kept: int | None
) -> None:
    spec = spec_of("mixtral", num_hidden_layers=8)
    rng = np.random.default_rng(0)
    scores = {s.gate.key: rng.random(6).astype(np.float32) for s in expert_sites(spec)}
    selection = select_experts(spec, Ranking(scores, is_joint=is_joint), WeightTarget(target), "")
    numbers = {int(gates.sum()) for gates in selection.gates.values.values()}
    assert (numbers == {kept}) == (kept is not None)
    assert selection.miss(target) <= TOLERANCE


def test_every_layer_keeps_as_many_experts_as_a_token_uses() -> None:
    spec = spec_of("mixtral")
    with pytest.raises(
        TrainingError, match=r"--target 0\.6: the nearest .* is 0\.500, because only whole experts"
    ):
        GRANULARITIES[EXPERTS].check_reachable(spec, WeightTarget(0.6))
