"""Relaxations of gates against formulas worked out without torch, and against their own noise."""

import math

import numpy as np
import pytest
import torch

from sgate_serve.training.gates.relaxations import (
    NOISE,
    RELAXATIONS,
    HardConcrete,
    Relaxation,
    StraightThrough,
    noisy_read_out,
    open_probability,
    read_out,
)


@pytest.mark.parametrize("logit", [-4.0, -0.5, -0.1, 0.0, 0.3, 0.5, 2.0])
def test_the_read_out_is_a_clamped_shifted_tanh(logit: float) -> None:
    expected = min(1.0, max(0.0, math.tanh(logit) + 0.5))
    assert read_out(torch.tensor(logit)).item() == pytest.approx(expected, abs=1e-6)


def test_gates_are_exactly_closed_and_exactly_open_at_the_ends() -> None:
    half = math.atanh(0.5)
    values = read_out(torch.tensor([-half - 1e-3, half + 1e-3]))
    assert values.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("logit", [-2.0, -0.6, 0.0, 1.0])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_open_probability_is_a_normal_distribution(logit: float, noise: float) -> None:
    expected = 0.5 * math.erfc(-(math.tanh(logit) + 0.5) / noise / math.sqrt(2))
    found = open_probability(torch.tensor(logit, dtype=torch.float64), noise).item()
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_open_probability_counts_the_noisy_gates_that_are_open() -> None:
    torch.manual_seed(0)
    logits = torch.full((200_000,), -0.5)
    share = (noisy_read_out(logits) > 0).float().mean().item()
    assert share == pytest.approx(open_probability(logits[0], NOISE).item(), abs=0.005)


def test_the_noise_has_the_papers_width() -> None:
    torch.manual_seed(0)
    samples = noisy_read_out(torch.zeros(200_000))
    assert samples.mean().item() == pytest.approx(0.5, abs=0.002)
    assert samples.std().item() == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("logit", [-3.0, -1.0, 0.0, 2.0])
def test_the_open_probability_of_hard_concrete_gates_is_how_often_samples_are_open(
    logit: float,
) -> None:
    torch.manual_seed(0)
    samples = HardConcrete().sample(torch.full((20_000,), logit))
    expected = 1 / (1 + math.exp(-(logit - 2 / 3 * math.log(0.1 / 1.1))))
    probability = HardConcrete().open_probability(torch.tensor(logit)).item()
    assert probability == pytest.approx(expected, abs=1e-6)
    assert (samples > 0).float().mean().item() == pytest.approx(expected, abs=0.015)
    assert samples.min() >= 0 and samples.max() <= 1


@pytest.mark.parametrize("logit", [-1.0, -0.6, -0.5, 0.3])
def test_straight_through_samples_are_0_or_1_and_pass_the_relaxed_slope(logit: float) -> None:
    torch.manual_seed(0)
    logits = torch.full((20_000,), logit, requires_grad=True)
    samples = StraightThrough().sample(logits)
    torch.autograd.backward(samples.sum())
    assert set(samples.detach().round(decimals=5).tolist()) <= {0.0, 1.0}
    expected = 0.5 * math.erfc(-(math.tanh(logit) + 0.5) / 0.1 / math.sqrt(2))
    assert samples.mean().item() == pytest.approx(expected, abs=0.015)
    assert StraightThrough().open_probability(logits)[0].item() == pytest.approx(expected, abs=1e-6)
    # Closed or open, a gate feels the loss.
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), 1 - math.tanh(logit) ** 2, rtol=1e-5)


@pytest.mark.parametrize("logit", [-5.0, -1.0, 0.0, 1.5, 5.0])
def test_hard_concrete_reads_out_as_a_stretched_sigmoid(logit: float) -> None:
    expected = min(1.0, max(0.0, 1.2 / (1 + math.exp(-logit)) - 0.1))
    assert HardConcrete().read_out(torch.tensor(logit)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("relaxation", RELAXATIONS.values(), ids=list(RELAXATIONS))
def test_a_gate_reads_out_as_closed_up_to_its_threshold(relaxation: Relaxation) -> None:
    around = torch.tensor([relaxation.closing - 1e-4, relaxation.closing + 1e-4])
    below, above = relaxation.read_out(around).tolist()
    assert below == 0 and 0 < above <= 1
    assert relaxation.read_out(torch.tensor(relaxation.closing + relaxation.width)) == 1
    assert relaxation.read_out(torch.tensor(relaxation.flat[0])).item() == pytest.approx(
        1, abs=0.02
    )
