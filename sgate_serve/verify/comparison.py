"""Compare the outputs of two models for the same prompts, within the tolerance of fp32."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.model_protocols import Floats

# Reordered fp32 sums differ by about 1e-6 of the logits' scale; a wrong weight by far more.
RELATIVE_TOLERANCE = 1e-4
TIE_TOLERANCES = 10
# More rows that a close choice among experts would explain are no accident.
MOST_REROUTED = 0.25
# Rows are compared a few at a time: a row has as many logits as the vocabulary has tokens.
ROWS = 64


@dataclass(frozen=True)
class LogitComparison:
    """Two models over all prompts: the largest difference and the greedy tokens.

    `undecided` counts the rows whose best two reference logits are as close as those of a tie.
    `rerouted` counts the rows left out because a close choice among experts went the other way.
    `worst` is the index of the prompt with the largest difference. `lacking` says in words
    that rows are missing, None if all are there.
    """

    max_abs_diff: float
    scale: float
    num_tokens: int
    tokens_equal: int
    ties: int
    undecided: int = 0
    rerouted: int = 0
    worst: int = 0
    lacking: str | None = None

    @property
    def tolerance(self) -> float:
        return tolerance_of(self.scale)

    @property
    def holds(self) -> bool:
        unequal = self.num_tokens - self.tokens_equal - self.ties
        is_enough = self.rerouted <= MOST_REROUTED * (self.num_tokens + self.rerouted)
        is_close = self.max_abs_diff <= self.tolerance
        return is_close and unequal == 0 and self.lacking is None and is_enough


@dataclass
class OutputComparison:
    """Collects what a comparison needs, prompt by prompt; the outputs themselves are not kept.

    With `has_pooled` the last expected row is the pooled state of a base model, which an engine may
    omit.
    """

    has_pooled: bool = False
    differences: list[float] = field(default_factory=list)
    scale: float = 0.0
    # For each row, whether the greedy choice is the same, and the lead of the best reference logit.
    equal: list[NDArray[np.bool_]] = field(default_factory=list)
    leads: list[Floats] = field(default_factory=list)
    rerouted: int = 0
    lacking: str | None = None

    def add(
        self, expected: Floats, found: Floats, doubtful: NDArray[np.bool_] | None = None
    ) -> None:
        """Add one prompt's outputs, [rows, outputs] each.

        Rows that are `doubtful` [rows] and differ are left out, and counted.
        """
        self.lacking = self.lacking or lacking_rows(expected, found, self.has_pooled)
        if doubtful is not None and doubtful.any() and self.lacking is None:
            length = min(len(expected), len(found))
            tolerance = tolerance_of(float(np.abs(expected).max()))
            largest = np.abs(expected[:length] - found[:length]).max(axis=-1)
            kept = ~(doubtful[:length] & ~(largest <= tolerance))
            self.rerouted += int((~kept).sum())
            expected, found = expected[:length][kept], found[:length][kept]
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
        equal = np.concatenate([np.empty(0, np.bool_), *self.equal])
        leads = np.concatenate([np.empty(0, np.float32), *self.leads])
        is_close = leads < TIE_TOLERANCES * tolerance_of(self.scale)
        return LogitComparison(
            max_abs_diff=float(np.max(self.differences)),
            scale=self.scale,
            num_tokens=len(equal),
            tokens_equal=int(equal.sum()),
            ties=int((~equal & is_close).sum()),
            undecided=int(is_close.sum()),
            rerouted=self.rerouted,
            worst=int(np.argmax(self.differences)),
            lacking=self.lacking,
        )


def tolerance_of(scale: float) -> float:
    """Return how far outputs of at most `scale` may differ; outputs below 1 as far as 1 itself."""
    return RELATIVE_TOLERANCE * max(1.0, scale)


def lacking_rows(expected: Floats, found: Floats, has_pooled: bool) -> str | None:
    """Say in words that outputs lack rows; with `has_pooled` the last one may be missing."""
    if len(expected) - len(found) in (0, int(has_pooled)):
        return None
    return f"returned {len(found)} of {len(expected)} rows"


def row_blocks(expected: Floats, found: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield a few rows of both at a time; rows that only one of them has are left out."""
    length = min(len(expected), len(found))
    for start in range(0, length, ROWS):
        span = slice(start, min(start + ROWS, length))
        yield expected[span], found[span]
