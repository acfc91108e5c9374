"""The gate's formulas against values worked out without torch, and against its own noise."""

import math

import pytest
import torch

from sgate_serve.training.gate_functions import (
    NOISE,
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
