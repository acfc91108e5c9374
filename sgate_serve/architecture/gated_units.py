"""Units that are gated otherwise than act(gate) · up: those of GPT-OSS, with clamped parts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClampedUnits:
    """A unit is (u + 1) · g · sigmoid(alpha · g), with g = min(gate, limit) and |u| ≤ limit.

    It is 0 where the gate is, and not where up is.
    """

    alpha: float
    limit: float


# Those of all published checkpoints; vLLM computes no others.
PUBLISHED = ClampedUnits(alpha=1.702, limit=7.0)
