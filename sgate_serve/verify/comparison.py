"""Compare the outputs of two models for the same prompts, within the tolerance of fp32."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sgate_serve.engines.model_protocols import Floats, Tokens

# Reordered fp32 sums differ by about 1e-6 of the logits' scale; a wrong weight by far more.
RELATIVE_TOLERANCE = 1e-4
TIE_TOLERANCES = 10

Outputs = Callable[[Tokens], Floats]


@dataclass(frozen=True)
class LogitComparison:
    """Two models over all prompts: the largest difference and the greedy tokens."""

    max_abs_diff: float
    scale: float
    num_tokens: int
    tokens_equal: int
    ties: int

    @property
    def tolerance(self) -> float:
        return RELATIVE_TOLERANCE * max(1.0, self.scale)

    @property
    def holds(self) -> bool:
        unequal = self.num_tokens - self.tokens_equal - self.ties
        return self.max_abs_diff <= self.tolerance and unequal == 0


def compare_logits(reference: Outputs, engine: Outputs, prompts: list[Tokens]) -> LogitComparison:
    """Teacher-force the same prompts through both; compare logits and greedy tokens."""
    expected, found = paired_outputs(reference, engine, prompts)
    scale = float(np.abs(expected).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, scale)
    # Padded, since a regression has a single output and so no second best.
    padded = np.pad(expected, ((0, 0), (1, 0)), constant_values=-np.inf)
    best = np.sort(padded, axis=-1)[:, -2:]
    is_equal = expected.argmax(-1) == found.argmax(-1)
    is_tie = best[:, 1] - best[:, 0] < TIE_TOLERANCES * tolerance
    return LogitComparison(
        max_abs_diff=float(np.abs(expected - found).max()),
        scale=scale,
        num_tokens=len(expected),
        tokens_equal=int(is_equal.sum()),
        ties=int((~is_equal & is_tie).sum()),
    )


def paired_outputs(
    reference: Outputs, engine: Outputs, prompts: list[Tokens]
) -> tuple[Floats, Floats]:
    """Teacher-force the same prompts through both; return all rows of each.

    An engine may omit the last row of a base model's outputs, its pooled state.
    """
    pairs = [(reference(prompt), engine(prompt)) for prompt in prompts]
    expected = [wide[: len(found)] for wide, found in pairs]
    return np.concatenate(expected), np.concatenate([found for _, found in pairs])
