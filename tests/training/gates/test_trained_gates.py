"""Gates, their budget and their start: on real sites, with the optimiser that training uses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.gates.budget import Budget
from sgate_serve.training.gates.expected_removal import coupled_removal
from sgate_serve.training.gates.initialization import start_at_mask, start_open
from sgate_serve.training.gates.relaxations import RELAXATIONS
from sgate_serve.training.gates.trained_gates import TrainedGates
from sgate_serve.training.granularities import GRANULARITIES, TRAINABLE
from sgate_serve.training.masks.coupled_selection import select_units
from sgate_serve.training.masks.prunable_sites import (
    GateValues,
    PrunableSite,
    row_col_sites,
    unit_sites,
)
from sgate_serve.training.masks.removal_target import WeightTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED, GATES, ROW_COL, TrainOptions
from tests.training.masks.test_coupled_selection import random_scores, spec_of


def gates_of(spec: ModelSpec, granularity: str = COUPLED) -> TrainedGates:
    """Return gates that start from random scores."""
    kind, sites = TRAINABLE[granularity], GRANULARITIES[granularity].sites(spec)
    options = TrainOptions("base", Path("data"), Path("out"), method=GATES, gates=granularity)
    start = kind.initialize(spec, random_scores(sites), WeightTarget(0.3), options)
    relaxation = RELAXATIONS[options.gate_relaxation]
    return TrainedGates(sites, start.logits, kind.removal(spec), relaxation)


def joined(sites: Sequence[PrunableSite], block: str, values: GateValues) -> np.ndarray:
    return np.concatenate([values[site.gate.key] for site in sites if site.block == block])


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_coupled_gates_start_at_the_mask_of_their_scores(relaxation: str) -> None:
    spec = spec_of(8, 4, layers=6, mlp_units=64)
    sites = unit_sites(spec)
    scores = random_scores(sites)
    options = TrainOptions("base", Path("data"), Path("out"), relaxation=relaxation)
    start = start_at_mask(spec, scores, WeightTarget(0.4), replace(options, balance="even"))
    gates = TrainedGates(sites, start.logits, coupled_removal(spec), RELAXATIONS[relaxation])
    mask = dict(select_units(spec, Ranking(scores), WeightTarget(0.4), "").gates.values)
    for block, goal in zip(("mlp", "attention"), start.goals, strict=True):
        order = joined(sites, block, scores).argsort()
        assert (np.diff(joined(sites, block, start.logits)[order]) > 0).all()
        closed = joined(sites, block, mask) == 0
        assert goal == pytest.approx(closed.mean(), abs=1e-6)
        # A best unit of its layer stays open in the mask, whatever its rank.
        started = joined(sites, block, start.logits) <= RELAXATIONS[relaxation].closing
        assert (closed == started).mean() > 0.95
    assert gates.removed_now().tolist() == pytest.approx(start.goals, abs=0.02)
    costs = {key: np.exp(values) for key, values in scores.items()}
    joint = start_at_mask(spec, costs, WeightTarget(0.4), replace(options, method=GATES))
    assert start.num_groups is None and joint.num_groups is not None
    assert joint.goals[1] == pytest.approx(joint.num_groups / 24)


def test_the_papers_start_is_their_normal_distribution_in_the_order_of_the_scores() -> None:
    spec = spec_of(8, 4, layers=8, mlp_units=400)
    sites = row_col_sites(spec)
    scores = random_scores(sites)
    options = TrainOptions("base", Path("data"), Path("out"), gates=ROW_COL)
    start = start_open(spec, scores, WeightTarget(0.2), options)
    logits = start.logits
    assert start.goals == (0.2, 0.2)
    for block in ("mlp", "attention"):
        started = joined(sites, block, logits)
        assert started.mean() == pytest.approx(1.0, abs=0.01)
        assert started.std() == pytest.approx(0.1, abs=0.01)
        assert (np.diff(started[joined(sites, block, scores).argsort()]) >= 0).all()
    other = start_open(spec, scores, WeightTarget(0.2), replace(options, seed=1)).logits
    assert any((other[key] != logits[key]).any() for key in logits)


def test_every_site_counts_the_weights_of_its_linear() -> None:
    spec = spec_of(8, 2)
    weights = {site.gate.key: site.unit_weights for site in row_col_sites(spec)}
    assert weights["model.layers.1.self_attn.k_proj.rows"] == 48
    assert weights["model.layers.1.self_attn.k_proj.columns"] == 16
    assert weights["model.layers.1.mlp.down_proj.rows"] == 96
    assert len(weights) == 3 * 7 * 2


def test_sources_repeat_a_group_over_its_query_heads() -> None:
    gates = gates_of(spec_of(8, 2)).eval()
    logits = gates.scores()["model.layers.1.kv_groups"]
    expected = np.repeat([float(math.tanh(a) > -0.5) for a in logits], 4 * 8)
    source = gates.sources()["model.layers.1.self_attn.o_proj"]
    assert source.rows is None and source.columns is not None
    np.testing.assert_allclose(source.columns().detach().numpy(), expected, rtol=1e-6)


def test_row_col_sources_are_both_sides_of_each_linear() -> None:
    spec = spec_of(8, 2)
    gates = gates_of(spec, ROW_COL).eval()
    sources = gates.sources()
    assert len(sources) == 3 * 7
    down = sources["model.layers.2.mlp.down_proj"]
    assert down.rows is not None and down.columns is not None
    assert (down.rows().shape, down.columns().shape) == ((48,), (96,))
    logits = gates.scores()["model.layers.2.mlp.down_proj.rows"]
    assert logits.shape == (48,)


def test_noise_is_drawn_in_training_only() -> None:
    gates = gates_of(spec_of(8, 2))
    source = gates.sources()["model.layers.0.mlp.down_proj"].columns
    assert source is not None
    assert not torch.equal(source(), source())
    gates.eval()
    assert torch.equal(source(), source())


@pytest.mark.parametrize("goal", [0.1, 0.6])
@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_the_budget_alone_closes_the_goal_of_each_kind(granularity: str, goal: float) -> None:
    gates, budget = gates_of(spec_of(8, 8, mlp_units=200), granularity), Budget()
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.02, betas=(0.9, 0.95))
    for step in range(240):
        now = torch.full((2,), goal * min(1.0, step / 120))
        optimizer.zero_grad()
        torch.autograd.backward(budget.penalty(gates, now))
        optimizer.step()
        budget.ascend(gates, now)
    assert gates.removed().tolist() == pytest.approx([goal, goal], abs=0.03)
    assert torch.isfinite(budget.multipliers).all()


def test_the_multiplier_rises_by_the_shortfall() -> None:
    gates, budget = gates_of(spec_of(8, 2)), Budget()
    with torch.no_grad():
        for logits in gates.logits:
            logits.fill_(3.0)
    budget.ascend(gates, torch.full((2,), 0.4))
    assert budget.multipliers.tolist() == pytest.approx([0.05 * 0.4] * 2, abs=1e-6)


def test_the_penalty_flows_through_the_papers_open_probability() -> None:
    spec = spec_of(8, 2, layers=1)
    gates, budget = gates_of(spec, ROW_COL), Budget()
    with torch.no_grad():
        for logits in gates.logits:
            logits.fill_(1.0)
    penalty = budget.penalty(gates, torch.full((2,), 0.5))
    index = [site.gate.key for site in gates.sites].index("model.layers.0.self_attn.q_proj.rows")
    (gradient,) = torch.autograd.grad(penalty, [gates.logits[index]])
    # One more query row open: 32 columns, each open with Φ((tanh 1 + 0.5) / 0.5), of all weights.
    mean = math.tanh(1.0)
    is_open = 0.5 * math.erfc(-(mean + 0.5) / 0.5 / math.sqrt(2))
    slope = math.exp(-0.5 * ((mean + 0.5) / 0.5) ** 2) / math.sqrt(2 * math.pi) / 0.5
    slope *= 1 - mean**2
    total = 2 * 64 * 32 + 2 * 16 * 32
    expected = 10.0 * 0.5 * slope * 32 * is_open / total
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-4)
