from pathlib import Path

import numpy as np
import pytest

from sgate_serve.server.classifier_head import ClassifierHead
from sgate_serve.server.served_model import ServedModel
from tests.server.hash_encoder import HashEncoder


def test_scores_are_probabilities_or_the_values_themselves() -> None:
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    exact = logits.astype(np.float64)
    single = ClassifierHead(("a", "b", "c"), "single_label_classification").scores(logits)
    assert single == pytest.approx(np.exp(exact) / np.exp(exact).sum(), abs=1e-6)
    multi = ClassifierHead(("a", "b", "c"), "multi_label_classification").scores(logits)
    assert multi == pytest.approx(1 / (1 + np.exp(-exact)), abs=1e-6)
    assert ClassifierHead(("a", "b", "c"), "regression").scores(logits) is logits
    assert {single.dtype, multi.dtype} == {np.dtype(np.float32)}


@pytest.mark.filterwarnings("error")
def test_scores_of_extreme_logits_do_not_overflow() -> None:
    logits = np.array([1e38, -1e38], np.float32)
    for problem_type in ("single_label_classification", "multi_label_classification"):
        scores = ClassifierHead(("a", "b"), problem_type).scores(logits)
        assert scores.tolist() == [1.0, 0.0]


def test_a_model_has_the_head_that_it_is_given(tmp_path: Path) -> None:
    head = ClassifierHead(("no", "yes"), "single_label_classification")
    loaded = ServedModel.from_folder(HashEncoder(100), tmp_path, "classify", head=head)
    assert loaded.head is head
    assert ServedModel.from_folder(HashEncoder(100), tmp_path, "embed").head is None
