"""Medians of paired ratios with bootstrap confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median with its 95% bootstrap confidence interval (percentile method)."""

    median: float
    low: float
    high: float


def median_with_interval(values: Sequence[float], seed: int) -> Estimate:
    """Return the median of `values` (one per round) and its interval from resampled rounds."""
    sample = np.asarray(values)
    indices = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    medians = np.median(sample[indices], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Estimate(float(np.median(sample)), float(low), float(high))
