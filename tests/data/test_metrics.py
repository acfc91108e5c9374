"""Metrics against formulas by hand, and their standard errors against theory."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from sgate_serve.data.metrics import (
    MetricValue,
    check_extra_installed,
    classification_metrics,
    perplexity_metrics,
    regression_metrics,
)
from sgate_serve.errors import SgateError

RNG = np.random.default_rng(0)


def test_classes_are_scored_by_accuracy_f1_and_matthews() -> None:
    truth = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    predicted = np.array([1, 1, 0, 0, 0, 0, 1, 1])
    scores = classification_metrics(np.eye(2)[predicted], truth)
    assert scores["accuracy"].value == 0.75
    # Three true and one false of each kind.
    assert scores["macro_f1"].value == pytest.approx(0.75)
    assert scores["matthews"].value == pytest.approx((3 * 3 - 1) / math.sqrt(4 * 4 * 4 * 4))


def test_the_standard_error_of_an_accuracy_is_binomial() -> None:
    truth = np.zeros(1000, np.int64)
    predicted = (RNG.random(1000) < 0.2).astype(np.int64)
    accuracy = classification_metrics(np.eye(2)[predicted], truth)["accuracy"]
    expected = math.sqrt(accuracy.value * (1 - accuracy.value) / 1000)
    assert accuracy.standard_error == pytest.approx(expected, rel=0.01)


def wilson(num_right: int, num_samples: int) -> tuple[float, float]:
    """Wilson's interval at 95%, as in his paper (1927)."""
    z, share = 1.959964, num_right / num_samples
    middle = share + z**2 / (2 * num_samples)
    half = z * math.sqrt(share * (1 - share) / num_samples + z**2 / (4 * num_samples**2))
    low, high = ((middle + sign * half) / (1 + z**2 / num_samples) for sign in (-1, 1))
    return low, high


@pytest.mark.parametrize(("num_right", "num_samples"), [(50, 50), (0, 50), (37, 50), (1, 1)])
def test_the_interval_of_an_accuracy_is_wilsons(num_right: int, num_samples: int) -> None:
    truth = np.arange(num_samples) % 2
    predicted = np.where(np.arange(num_samples) < num_right, truth, 1 - truth)
    accuracy = classification_metrics(np.eye(2)[predicted], truth)["accuracy"]
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson(num_right, num_samples), abs=1e-6)
    assert spread_of(accuracy) > 0


@pytest.mark.parametrize("num_samples", [10, 100])
def test_no_score_without_a_mistake_is_certain(num_samples: int) -> None:
    truth = np.arange(num_samples) % 3
    scores = classification_metrics(np.eye(3)[truth], truth)
    numbers = truth + RNG.standard_normal(num_samples)
    scores |= regression_metrics(numbers, numbers)
    for name, score in scores.items():
        assert score.low is not None and score.high is not None
        assert score.low <= score.value <= score.high
        # The next sample may be a mistake, and the interval says so in proportion.
        width = (score.high - score.low) * num_samples
        assert 1 < width < 40, (name, width)
        assert spread_of(score) > 0


def test_the_spread_of_class_scores_is_the_bootstraps_where_that_works() -> None:
    truth = RNG.integers(0, 5, 1000)
    predicted = np.where(RNG.random(1000) < 0.6, truth, RNG.integers(0, 5, 1000))
    scores = classification_metrics(np.eye(5)[predicted], truth)
    rows = RNG.integers(0, 1000, (300, 1000))
    for name, score_of in (
        ("macro_f1", lambda t, p: f1_score(t, p, average="macro")),
        ("matthews", matthews_corrcoef),
    ):
        drawn = [score_of(truth[row], predicted[row]) for row in rows]
        assert spread_of(scores[name]) == pytest.approx(np.std(drawn), rel=0.15)
        ends = np.quantile(drawn, [0.025, 0.975])
        assert (scores[name].low, scores[name].high) == pytest.approx(ends, abs=0.01)


def spread_of(score: MetricValue) -> float:
    assert score.standard_error is not None
    return score.standard_error


def test_numbers_are_scored_by_correlation_and_error() -> None:
    truth = RNG.standard_normal(500)
    values = truth**3 + 1
    scores = regression_metrics(values, truth)
    assert scores["spearman"].value == pytest.approx(1.0)
    assert scores["pearson"].value == pytest.approx(np.corrcoef(values, truth)[0, 1])
    assert scores["mse"].value == pytest.approx(np.mean((values - truth) ** 2))
    assert 0 < spread_of(scores["pearson"]) < 0.1


def test_a_constant_prediction_correlates_with_nothing() -> None:
    scores = regression_metrics(np.ones(10), np.linspace(0, 9, 10))
    assert scores["pearson"].value == scores["spearman"].value == 0.0


def test_perplexity_is_of_all_tokens_together() -> None:
    nats, tokens = np.array([10.0, 40.0]), np.array([10, 20])
    scores = perplexity_metrics(nats, tokens)
    assert scores["loss"].value == pytest.approx(50 / 30)
    assert scores["perplexity"].value == pytest.approx(math.exp(50 / 30))
    assert spread_of(scores["loss"]) > 0
    single = perplexity_metrics(nats[:1], tokens[:1])["loss"]
    assert (single.standard_error, single.low, single.high) == (None, None, None)
    assert single.interval_text == "unknown: one sample"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgate_serve.environment.find_spec", lambda name: None)
    with pytest.raises(
        SgateError, match=r'scores need sklearn, scipy, .*install.* -e ".*\[eval\]"'
    ):
        check_extra_installed()
