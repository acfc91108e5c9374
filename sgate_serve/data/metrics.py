"""Quality metrics of predictions, each with a standard error and a 95% interval.

The formulas are those of scikit-learn and SciPy (extra `eval`). A bootstrap over the samples would
call a classifier without a mistake certain, whatever the number of samples. So the interval of an
accuracy is Wilson's, and that of other scores allows for one more sample of random classes. Scores
that are not made of counts have a paired bootstrap. All seeds are fixed.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.environment import check_installed

Floats = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
# Fewer samples say nothing about their spread.
LEAST_SAMPLES = 2
# Values that differ by less are equal but for rounding.
SAME = 1e-12


@dataclass(frozen=True)
class MetricValue:
    """The value of one metric, its standard error, and the ends of its 95% interval.

    From a single sample, which says nothing about the spread, the last three are None.
    """

    value: float
    standard_error: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval_text(self) -> str:
        if self.low is None or self.high is None:
            return "unknown: one sample"
        return f"{self.low:.4f} to {self.high:.4f}"


Metrics = dict[str, MetricValue]


def check_extra_installed() -> None:
    """Raise SgateError naming the missing packages and the command that installs them."""
    check_installed("scores need", ("sklearn", "scipy"), "eval")


def classification_metrics(logits: Floats, labels: NDArray[np.int64]) -> Metrics:
    """Compare logits [n, classes] with class numbers [n]: accuracy, macro F1, Matthews."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = logits.argmax(axis=1)
    draws = ClassDraws.of(labels, predicted, logits.shape[1])
    macro_f1 = float(f1_score(labels, predicted, average="macro", zero_division=0))
    with warnings.catch_warnings(action="ignore"):  # of a single class
        matthews = float(matthews_corrcoef(labels, predicted))
    return {
        "accuracy": _accuracy(float(accuracy_score(labels, predicted)), len(labels)),
        "macro_f1": _from_draws(macro_f1, draws.macro_f1()),
        "matthews": _from_draws(matthews, draws.matthews()),
    }


def _accuracy(value: float, num_samples: int) -> MetricValue:
    """Return an accuracy with Wilson's interval, and a standard error that fits it."""
    from scipy.stats import binomtest

    exact = binomtest(round(value * num_samples), num_samples)
    interval = exact.proportion_ci(CONFIDENCE, method="wilson")
    # The mean and variance of the posterior under Jeffreys' prior.
    right, total = value * num_samples + 0.5, num_samples + 1
    error = math.sqrt(right * (total - right) / (total**2 * (total + 1)))
    return MetricValue(value, error, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class ClassDraws:
    """Draws of what the samples leave possible, as fractions [draws, classes] of all.

    `hits` is the fraction of each class that is found, `truth` that belongs to it, and `predicted`
    that is taken for it. A draw weighs the samples at random (the Bayesian bootstrap, Rubin 1981)
    together with one more of random classes, so that the next sample may always be a mistake.
    """

    hits: Floats
    truth: Floats
    predicted: Floats

    @classmethod
    def of(cls, truth: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> "ClassDraws":
        """Draw for the classes that occur, and for a second one if it is a single one."""
        seen = np.unique(np.concatenate([truth, predicted]))
        if len(seen) < 2:
            seen = np.union1d(seen, np.arange(min(2, num_classes)))
        pairs = np.searchsorted(seen, truth) * len(seen) + np.searchsorted(seen, predicted)
        cells, counts = np.unique(pairs, return_counts=True)
        generator = np.random.default_rng(SEED)
        more = generator.integers(0, len(seen) ** 2, (RESAMPLES, 1))
        weights = generator.standard_gamma([*counts, 1], (RESAMPLES, len(cells) + 1))
        weights /= weights.sum(axis=1, keepdims=True)
        rows, columns = np.divmod(
            np.hstack([np.broadcast_to(cells, (RESAMPLES, len(cells))), more]), len(seen)
        )

        def sums(classes: NDArray[Any], values: Floats) -> Floats:
            size = len(seen)
            each = zip(classes, values, strict=True)
            return np.stack([np.bincount(c, v, minlength=size) for c, v in each])

        hits = sums(rows, np.where(rows == columns, weights, 0))
        return cls(hits, sums(rows, weights), sums(columns, weights))

    def macro_f1(self) -> Floats:
        """Return the mean F1 [draws] over the classes that occur in a draw."""
        both = self.truth + self.predicted
        scores = np.divide(2 * self.hits, both, out=np.zeros_like(both), where=both > 0)
        return np.asarray(scores.sum(axis=1) / (both > 0).sum(axis=1))

    def matthews(self) -> Floats:
        """Return the Matthews correlation [draws]; 0 where a single class occurs.

        https://doi.org/10.1016/j.compbiolchem.2004.09.006
        """
        agreement = self.hits.sum(axis=1) - (self.truth * self.predicted).sum(axis=1)
        spread = (1 - (self.truth**2).sum(axis=1)) * (1 - (self.predicted**2).sum(axis=1))
        root = np.sqrt(np.maximum(spread, 0))
        return np.asarray(np.divide(agreement, root, out=np.zeros_like(root), where=root > 0))


def _from_draws(value: float, draws: Floats) -> MetricValue:
    """Return a value with the spread and the quantiles of its draws; it lies in its interval."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return MetricValue(value, float(draws.std()), min(float(low), value), max(float(high), value))


def regression_metrics(values: Floats, labels: Floats) -> Metrics:
    """Compare values [n] with labels [n]: Pearson and Spearman (0 if constant), and the MSE."""
    from scipy.stats import pearsonr, spearmanr

    def correlation(method: Callable[..., tuple[float, float]]) -> Callable[..., float]:
        def statistic(truth: Floats, predicted: Floats) -> float:
            is_constant = np.ptp(truth) == 0 or np.ptp(predicted) == 0
            return 0.0 if is_constant else float(method(truth, predicted)[0])

        return statistic

    statistics = {
        "pearson": correlation(pearsonr),
        "spearman": correlation(spearmanr),
        "mse": lambda truth, predicted: float(np.mean((truth - predicted) ** 2)),
    }
    return _metrics(statistics, labels, values)


def perplexity_metrics(nats: Floats, num_tokens: NDArray[np.int64]) -> Metrics:
    """Return loss (nats per token) and perplexity, from the nats and tokens [n] of sequences."""
    statistics = {
        "loss": lambda total, count: float(total.sum() / count.sum()),
        "perplexity": lambda total, count: float(np.exp(total.sum() / count.sum())),
    }
    return _metrics(statistics, nats, num_tokens)


def _metrics(
    statistics: Mapping[str, Callable[..., float]], first: NDArray[Any], second: NDArray[Any]
) -> Metrics:
    return {name: _estimated(statistic, first, second) for name, statistic in statistics.items()}


def _estimated(
    statistic: Callable[..., float], first: NDArray[Any], second: NDArray[Any]
) -> MetricValue:
    """Return a statistic of paired samples with the spread of its bootstrap.

    If no resample differs, as with a correlation of 1, each gets one more pair that is mixed from
    two samples.
    """
    value, count = statistic(first, second), len(first)
    if count < LEAST_SAMPLES:
        return MetricValue(value, None)
    generator = np.random.default_rng(SEED)
    rows = generator.integers(0, count, (RESAMPLES, count))
    draws = np.array([statistic(first[row], second[row]) for row in rows])
    if np.ptp(draws) < SAME:
        mixed = generator.integers(0, count, (RESAMPLES, 2))
        draws = np.array(
            [
                statistic(np.append(first[row], first[one]), np.append(second[row], second[other]))
                for row, (one, other) in zip(rows, mixed, strict=True)
            ]
        )
    return _from_draws(value, draws)
