"""Quality metrics of predictions, each with a standard error.

The formulas are those of scikit-learn and SciPy (extra `eval`). Standard errors come from a paired
bootstrap over the samples with a fixed seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.environment import check_installed

Floats = NDArray[np.float64]
RESAMPLES = 200
SEED = 0


@dataclass(frozen=True)
class MetricValue:
    """The value of one metric, and its standard error."""

    value: float
    standard_error: float


Metrics = dict[str, MetricValue]


def check_extra_installed() -> None:
    """Raise SgateError naming the missing packages and the command that installs them."""
    check_installed("scores need", ("sklearn", "scipy"), "eval")


def classification_metrics(logits: Floats, labels: NDArray[np.int64]) -> Metrics:
    """Compare logits [n, classes] with class numbers [n]: accuracy, macro F1, Matthews."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    def macro_f1(truth: Floats, predicted: Floats) -> float:
        return float(f1_score(truth, predicted, average="macro", zero_division=0))

    statistics = {
        "accuracy": lambda truth, predicted: float(accuracy_score(truth, predicted)),
        "macro_f1": macro_f1,
        "matthews": lambda truth, predicted: float(matthews_corrcoef(truth, predicted)),
    }
    return _metrics(statistics, labels, logits.argmax(axis=1))


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
    return {
        name: MetricValue(statistic(first, second), _standard_error(statistic, first, second))
        for name, statistic in statistics.items()
    }


def _standard_error(
    statistic: Callable[..., float], first: NDArray[Any], second: NDArray[Any]
) -> float:
    """Return the bootstrap's standard error, or 0 for a single sample."""
    from scipy.stats import bootstrap

    if len(first) < 2:
        return 0.0
    result = bootstrap(
        (first, second),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return float(result.standard_error)
