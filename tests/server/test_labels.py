from pathlib import Path

import numpy as np
import pytest

from sgate_serve.server.labels import Labels
from sgate_serve.server.model import LoadedModel
from tests.server.hash_encoder import HashEncoder


def test_scores_are_probabilities_or_the_values_themselves() -> None:
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    exact = logits.astype(np.float64)
    single = Labels(("a", "b", "c"), "single_label_classification").scores(logits)
    assert single == pytest.approx(np.exp(exact) / np.exp(exact).sum(), abs=1e-6)
    multi = Labels(("a", "b", "c"), "multi_label_classification").scores(logits)
    assert multi == pytest.approx(1 / (1 + np.exp(-exact)), abs=1e-6)
    assert Labels(("a", "b", "c"), "regression").scores(logits) is logits
    assert {single.dtype, multi.dtype} == {np.dtype(np.float32)}


@pytest.mark.filterwarnings("error")
def test_scores_of_extreme_logits_do_not_overflow() -> None:
    logits = np.array([1e38, -1e38], np.float32)
    for problem_type in ("single_label_classification", "multi_label_classification"):
        scores = Labels(("a", "b"), problem_type).scores(logits)
        assert scores.tolist() == [1.0, 0.0]


def test_a_model_has_the_labels_that_it_is_given(tmp_path: Path) -> None:
    labels = Labels(("no", "yes"), "single_label_classification")
    loaded = LoadedModel.from_folder(HashEncoder(100), tmp_path, "classify", labels=labels)
    assert loaded.labels is labels
    assert LoadedModel.from_folder(HashEncoder(100), tmp_path, "embed").labels is None
