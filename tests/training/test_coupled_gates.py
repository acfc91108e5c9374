"""Gates, their budget and their start: on real sites, with the optimiser that training uses."""

import math

import numpy as np
import pytest
import torch

from sgate_serve.training.coupled_gates import Budget, CoupledGates, start_logits
from sgate_serve.training.gate_functions import NOISE
from sgate_serve.training.sites import trained_sites
from tests.training.test_snap import random_scores, spec_of


def test_start_logits_keep_the_ranking_of_each_kind() -> None:
    spec = spec_of(8, 4)
    sites, scores = trained_sites(spec), random_scores(spec)
    logits = start_logits(sites, scores)
    for kind in ("mlp_units", "kv_groups"):
        keys = [key for key in scores if key.endswith(kind)]
        ranked = np.concatenate([scores[key] for key in keys]).argsort()
        started = np.concatenate([logits[key] for key in keys])[ranked]
        assert (np.diff(started) > 0).all()
        assert started[0] == pytest.approx(-0.4) and started[-1] == pytest.approx(2.0)


def test_removed_counts_weights_of_each_kind() -> None:
    spec = spec_of(8, 2)
    sites = trained_sites(spec)
    gates = CoupledGates(sites, random_scores(spec))
    with torch.no_grad():
        for site, logits in zip(sites, gates.logits, strict=True):
            logits.fill_(3.0)
            if site.gate.layer == 0:
                logits[: site.gate.num_gates // 2] = -3.0
    # Half of one of three layers, in both kinds; 0.1 of noise opens or closes none of these.
    assert gates.removed(NOISE).tolist() == pytest.approx([1 / 6, 1 / 6], abs=1e-4)


def test_columns_repeat_a_group_over_its_query_heads() -> None:
    spec = spec_of(8, 2)
    gates = CoupledGates(trained_sites(spec), random_scores(spec)).eval()
    logits = gates.scores()["model.layers.1.kv_groups"]
    expected = np.repeat([min(1.0, max(0.0, math.tanh(a) + 0.5)) for a in logits], 4 * 8)
    found = gates.columns()["model.layers.1.self_attn.o_proj"]()
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6)


def test_noise_is_drawn_in_training_only() -> None:
    spec = spec_of(8, 2)
    gates = CoupledGates(trained_sites(spec), random_scores(spec))
    source = gates.columns()["model.layers.0.mlp.down_proj"]
    assert not torch.equal(source(), source())
    gates.eval()
    assert torch.equal(source(), source())


@pytest.mark.parametrize("goal", [0.1, 0.6])
def test_the_budget_alone_closes_the_goal_of_each_kind(goal: float) -> None:
    spec = spec_of(8, 8, mlp_units=200)
    gates, budget = CoupledGates(trained_sites(spec), random_scores(spec)), Budget()
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.02, betas=(0.9, 0.95))
    for step in range(240):
        now = goal * min(1.0, step / 120)
        optimizer.zero_grad()
        torch.autograd.backward(budget.penalty(gates, now))
        optimizer.step()
        budget.ascend(gates, now)
    assert gates.removed(NOISE).tolist() == pytest.approx([goal, goal], abs=0.03)
    assert torch.isfinite(budget.multipliers).all()


def test_the_multiplier_rises_by_the_shortfall() -> None:
    spec = spec_of(8, 2)
    gates, budget = CoupledGates(trained_sites(spec), random_scores(spec)), Budget()
    with torch.no_grad():
        for logits in gates.logits:
            logits.fill_(3.0)
    budget.ascend(gates, 0.4)
    assert budget.multipliers.tolist() == pytest.approx([0.05 * 0.4] * 2, abs=1e-6)
