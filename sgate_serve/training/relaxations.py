"""How a gate is a random number in [0, 1] while it trains, so that closing has a gradient.

Each is exactly 0 or exactly 1 with some chance, one kind always. `sample` is the gate of one step,
`read_out` the gate without noise, `open_chance` the probability of not being 0, and `pressure` the
probability through which the budget pulls, smooth where `open_chance` is flat.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sgate_serve.training.gate_functions import (
    NOISE,
    PENALTY_NOISE,
    noisy_read_out,
    open_probability,
    read_out,
)
from sgate_serve.training.train_options import GAUSSIAN, HARD_CONCRETE, STRAIGHT_THROUGH


class Relaxation(Protocol):
    """A gate reads out as 0 up to the logit `closing`; an informed start spreads over `width`.

    `flat` are mean and deviation of a flat start, `least_open` the read-out of an open gate at
    least.
    """

    closing: float
    width: float
    flat: tuple[float, float]
    least_open: float

    def sample(self, logits: Tensor) -> Tensor: ...

    def read_out(self, logits: Tensor) -> Tensor: ...

    def open_chance(self, logits: Tensor) -> Tensor: ...

    def pressure(self, logits: Tensor) -> Tensor: ...


class Gaussian:
    """clamp(tanh(a) + 0.5 + ε, 0, 1), ε ~ N(0, 0.1²), of the papers (arXiv 2412.12951)."""

    closing = math.atanh(-0.5)
    width = 2.0
    # The papers' start, N(1, 0.1²): every gate is fully open.
    flat = (1.0, 0.1)
    # An open gate whose logit ended near closing acts as it did under the training noise, not as 0.
    least_open = NOISE

    def sample(self, logits: Tensor) -> Tensor:
        return noisy_read_out(logits)

    def read_out(self, logits: Tensor) -> Tensor:
        return read_out(logits)

    def open_chance(self, logits: Tensor) -> Tensor:
        return open_probability(logits, NOISE)

    def pressure(self, logits: Tensor) -> Tensor:
        """The authors' wider probability, which also reaches gates far from closing."""
        return open_probability(logits, PENALTY_NOISE)


class StraightThrough(Gaussian):
    """The Gaussian gate, rounded: 1 where it is above 0; gradients pass as if it were not rounded
    (the straight-through estimator, arXiv 1308.3432).

    Where a layer normalises what a gate scales, a gate of 0.05 does the work of an open one. Such a
    gate seems to close at no cost, which shows only when it becomes 0. And here a closed gate
    still feels the loss, so it can open again.
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

    def open_chance(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits - self.BETA * math.log(-self.GAMMA / self.ZETA))

    def pressure(self, logits: Tensor) -> Tensor:
        return self.open_chance(logits)

    def _stretched(self, values: Tensor) -> Tensor:
        return (values * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)


RELAXATIONS: Mapping[str, Relaxation] = {
    STRAIGHT_THROUGH: StraightThrough(),
    GAUSSIAN: Gaussian(),
    HARD_CONCRETE: HardConcrete(),
}
