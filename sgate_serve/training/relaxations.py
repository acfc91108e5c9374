"""How a gate is a random number in [0, 1] while it trains, so that closing has a gradient.

Both kinds are exactly 0 or exactly 1 with some chance. `sample` is the gate of one step, `read_out`
the gate without noise, `open_chance` the probability of not being 0, and `pressure` the
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
from sgate_serve.training.options import GAUSSIAN, HARD_CONCRETE


class Relaxation(Protocol):
    """`spread` are logits from almost closed to safely open, `flat` mean and deviation of a flat
    start; `least_open` is the read-out of an open gate at least."""

    spread: tuple[float, float]
    flat: tuple[float, float]
    least_open: float

    def sample(self, logits: Tensor) -> Tensor: ...

    def read_out(self, logits: Tensor) -> Tensor: ...

    def open_chance(self, logits: Tensor) -> Tensor: ...

    def pressure(self, logits: Tensor) -> Tensor: ...


class Gaussian:
    """clamp(tanh(a) + 0.5 + ε, 0, 1), ε ~ N(0, 0.1²), of the papers (arXiv 2412.12951)."""

    # The unit of lowest score starts almost closed, from the 40th percentile on all are fully open:
    # gates that the budget pulls down together stay apart by their rank.
    spread = (-0.4, 2.0)
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


class HardConcrete:
    """clamp(s·(ζ − γ) + γ, 0, 1), s a binary concrete variable (arXiv 1712.01312, equations 10 to
    12, with its β = 2/3, γ = −0.1, ζ = 1.1)."""

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    spread = (-1.5, 6.0)
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


RELAXATIONS: Mapping[str, Relaxation] = {GAUSSIAN: Gaussian(), HARD_CONCRETE: HardConcrete()}
