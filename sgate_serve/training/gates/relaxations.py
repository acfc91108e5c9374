"""Relaxations of a gate: while it trains it is random in [0, 1], so that closing has a gradient.

The papers' gate is clamp(tanh(a) + 0.5 + ε, 0, 1) of a logit a, with noise ε ~ N(0, 0.1²) in
training (arXiv 2412.12951). Every relaxation reaches exactly 0 and exactly 1 with some probability.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sgate_serve.training.train_options import GAUSSIAN, HARD_CONCRETE, STRAIGHT_THROUGH

NOISE = 0.1
# The authors' penalty uses wider noise than their gate, so it also presses on gates far from
# closing.
PENALTY_NOISE = 0.5


def read_out(logits: Tensor) -> Tensor:
    """Return clamp(tanh(a) + 0.5, 0, 1); a gate is closed where tanh(a) ≤ −0.5."""
    return (torch.tanh(logits) + 0.5).clamp(0, 1)


def noisy_read_out(logits: Tensor) -> Tensor:
    """Return a sample of the read-out under the training noise."""
    return (torch.tanh(logits) + 0.5 + NOISE * torch.randn_like(logits)).clamp(0, 1)


def open_probability(logits: Tensor, noise: float) -> Tensor:
    """Return Φ((tanh(a) + 0.5) / noise), the probability that a gate with this noise is above 0."""
    return 0.5 * (1 + torch.erf((torch.tanh(logits) + 0.5) / (noise * math.sqrt(2))))


class Relaxation(Protocol):
    """One way to relax gates.

    A gate reads out as 0 up to the logit `closing`. An initialization by scores spreads logits over
    `width`, one without over a normal distribution of mean and deviation `flat`. Open gates keep at
    least `least_open`.
    """

    closing: float
    width: float
    flat: tuple[float, float]
    least_open: float

    def sample(self, logits: Tensor) -> Tensor:
        """Return the gates of one training step."""

    def read_out(self, logits: Tensor) -> Tensor:
        """Return the gates without noise."""

    def open_probability(self, logits: Tensor) -> Tensor:
        """Return the probability that a gate is not 0."""

    def pressure_probability(self, logits: Tensor) -> Tensor:
        """Return the probability that carries the budget's gradient to gates far from closing."""


class Gaussian:
    """The papers' gate (arXiv 2412.12951)."""

    closing = math.atanh(-0.5)
    width = 2.0
    # The papers' initialization, N(1, 0.1²): every gate is fully open.
    flat = (1.0, 0.1)
    # An open gate whose logit ends near closing acts as under the training noise, not as 0.
    least_open = NOISE

    def sample(self, logits: Tensor) -> Tensor:
        return noisy_read_out(logits)

    def read_out(self, logits: Tensor) -> Tensor:
        return read_out(logits)

    def open_probability(self, logits: Tensor) -> Tensor:
        return open_probability(logits, NOISE)

    def pressure_probability(self, logits: Tensor) -> Tensor:
        return open_probability(logits, PENALTY_NOISE)


class StraightThrough(Gaussian):
    """The Gaussian gate, rounded up to 1 if it is above 0 (straight-through, arXiv 1308.3432).

    Gradients pass as if it were not rounded. Where a layer normalizes a gated value, a relaxed gate
    of 0.05 works as well as an open one, so it seems to close at no cost until it becomes 0.
    Rounding shows that cost at once, and a closed gate still gets a gradient, so it can reopen.
    """

    least_open = 1.0

    def sample(self, logits: Tensor) -> Tensor:
        relaxed = torch.tanh(logits) + 0.5 + NOISE * torch.randn_like(logits)
        return (relaxed > 0).to(relaxed.dtype) + relaxed - relaxed.detach()

    def read_out(self, logits: Tensor) -> Tensor:
        return (logits > self.closing).to(logits.dtype)


class HardConcrete:
    """clamp(s·(ζ − γ) + γ, 0, 1), s a binary concrete variable (arXiv 1712.01312, equations 10 to
    12, with its β = 2/3, γ = −0.1, ζ = 1.1)."""

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    closing = math.log(0.1 / 1.1)
    width = 6.0
    flat = (2.5, 0.1)
    least_open = 0.1

    def sample(self, logits: Tensor) -> Tensor:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - (1 - uniform).log()
        return self._stretched(torch.sigmoid((noise + logits) / self.BETA))

    def read_out(self, logits: Tensor) -> Tensor:
        return self._stretched(torch.sigmoid(logits))

    def open_probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits - self.BETA * math.log(-self.GAMMA / self.ZETA))

    def pressure_probability(self, logits: Tensor) -> Tensor:
        return self.open_probability(logits)

    def _stretched(self, values: Tensor) -> Tensor:
        return (values * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)


RELAXATIONS: Mapping[str, Relaxation] = {
    STRAIGHT_THROUGH: StraightThrough(),
    GAUSSIAN: Gaussian(),
    HARD_CONCRETE: HardConcrete(),
}
