"""Metrics against formulas by hand, and their standard errors against theory."""

import math

import numpy as np
import pytest

from sgate_serve.data.metrics import (
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
    assert accuracy.standard_error == pytest.approx(expected, rel=0.2)


def test_numbers_are_scored_by_correlation_and_error() -> None:
    truth = RNG.standard_normal(500)
    values = truth**3 + 1
    scores = regression_metrics(values, truth)
    assert scores["spearman"].value == pytest.approx(1.0)
    assert scores["pearson"].value == pytest.approx(np.corrcoef(values, truth)[0, 1])
    assert scores["mse"].value == pytest.approx(np.mean((values - truth) ** 2))
    assert 0 < scores["pearson"].standard_error < 0.1


def test_a_constant_prediction_correlates_with_nothing() -> None:
    scores = regression_metrics(np.ones(10), np.linspace(0, 9, 10))
    assert scores["pearson"].value == scores["spearman"].value == 0.0


def test_perplexity_is_of_all_tokens_together() -> None:
    nats, tokens = np.array([10.0, 40.0]), np.array([10, 20])
    scores = perplexity_metrics(nats, tokens)
    assert scores["loss"].value == pytest.approx(50 / 30)
    assert scores["perplexity"].value == pytest.approx(math.exp(50 / 30))
    assert scores["loss"].standard_error > 0
    assert perplexity_metrics(nats[:1], tokens[:1])["loss"].standard_error == 0


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgate_serve.environment.find_spec", lambda name: None)
    with pytest.raises(SgateError, match=r'scores need sklearn, scipy, .*"sgate-serve\[eval\]"'):
        check_extra_installed()
