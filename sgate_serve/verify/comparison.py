"""Compare the outputs of two models for the same prompts, within the tolerance of fp32."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.model_protocols import Floats
from sgate_serve.verify.prompts import Prompt

# Reordered fp32 sums differ by about 1e-6 of the logits' scale; a wrong weight by far more.
RELATIVE_TOLERANCE = 1e-4
TIE_TOLERANCES = 10
# Rows are compared a few at a time: a row has as many logits as the vocabulary has tokens.
ROWS = 64

Outputs = Callable[[Prompt], Floats]


@dataclass(frozen=True)
class LogitComparison:
    """Two models over all prompts: the largest difference and the greedy tokens.

    `worst` is the index of the prompt with the largest difference.
    """

    max_abs_diff: float
    scale: float
    num_tokens: int
    tokens_equal: int
    ties: int
    worst: int = 0

    @property
    def tolerance(self) -> float:
        return RELATIVE_TOLERANCE * max(1.0, self.scale)

    @property
    def holds(self) -> bool:
        unequal = self.num_tokens - self.tokens_equal - self.ties
        return self.max_abs_diff <= self.tolerance and unequal == 0


@dataclass
class OutputComparison:
    """Collects what a comparison needs, prompt by prompt; the outputs themselves are not kept.

    An engine may omit the last row of a base model's outputs, its pooled state.
    """

    differences: list[float] = field(default_factory=list)
    scale: float = 0.0
    # For each row, whether the greedy choice is the same, and the lead of the best reference logit.
    equal: list[NDArray[np.bool_]] = field(default_factory=list)
    leads: list[Floats] = field(default_factory=list)

    def add(self, expected: Floats, found: Floats) -> None:
        """Add one prompt's outputs, [rows, outputs] each."""
        difference = 0.0
        for wide, narrow in row_blocks(expected, found):
            difference = float(np.maximum(difference, np.abs(wide - narrow).max()))  # keeps a NaN
            self.scale = max(self.scale, float(np.abs(wide).max()))
            # Padded, since a regression has a single output and so no second best.
            padded = np.pad(wide, ((0, 0), (1, 0)), constant_values=-np.inf)
            second, best = np.partition(padded, -2)[:, -2:].T
            self.equal.append(wide.argmax(-1) == narrow.argmax(-1))
            self.leads.append(best - second)
        self.differences.append(difference)

    def result(self) -> LogitComparison:
        equal, leads = np.concatenate(self.equal), np.concatenate(self.leads)
        tolerance = RELATIVE_TOLERANCE * max(1.0, self.scale)
        return LogitComparison(
            max_abs_diff=float(np.max(self.differences)),
            scale=self.scale,
            num_tokens=len(equal),
            tokens_equal=int(equal.sum()),
            ties=int((~equal & (leads < TIE_TOLERANCES * tolerance)).sum()),
            worst=int(np.argmax(self.differences)),
        )


def compare_logits(
    reference: Outputs, engine: Outputs, prompts: Sequence[Prompt]
) -> LogitComparison:
    """Teacher-force the same prompts through both; compare logits and greedy tokens."""
    comparison = OutputComparison()
    for prompt in prompts:
        comparison.add(reference(prompt), engine(prompt))
    return comparison.result()


def row_blocks(expected: Floats, found: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield a few rows of both at a time; rows that only `expected` has are left out."""
    for start in range(0, len(found), ROWS):
        span = slice(start, min(start + ROWS, len(found)))
        yield expected[span], found[span]
