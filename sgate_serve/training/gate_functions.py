"""The gate: a logit read out as a number in [0, 1], exactly 0 and exactly 1 included.

clamp(tanh(a) + 0.5 + ε, 0, 1), ε ~ N(0, 0.1²) in training (arXiv 2412.12951).
"""

import math

import torch
from torch import Tensor

NOISE = 0.1
# The authors' penalty uses a wider noise than their gate: it still pulls on gates far from closing.
PENALTY_NOISE = 0.5


def read_out(logits: Tensor) -> Tensor:
    """Return clamp(tanh(a) + 0.5, 0, 1); a gate is closed where tanh(a) ≤ −0.5."""
    return (torch.tanh(logits) + 0.5).clamp(0, 1)


def noisy_read_out(logits: Tensor) -> Tensor:
    """Return a sample of the read-out under the training noise."""
    return (torch.tanh(logits) + 0.5 + NOISE * torch.randn_like(logits)).clamp(0, 1)


def open_probability(logits: Tensor, noise: float) -> Tensor:
    """Return Φ((tanh(a) + 0.5) / noise), the chance that a gate with this noise is above 0."""
    return 0.5 * (1 + torch.erf((torch.tanh(logits) + 0.5) / (noise * math.sqrt(2))))
