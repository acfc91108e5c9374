import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.errors import CheckpointError
from sgate_serve.server.classifier_head import ClassifierHead
from sgate_serve.server.loaded_model import LoadedModel
from tests.server.hash_encoder import HashEncoder


def head_of(folder: Path, **config: Any) -> ClassifierHead:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ClassifierHead.load(folder)


@pytest.mark.parametrize(
    ("config", "names", "problem_type"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "single_label_classification"),
        ({"num_labels": 1}, ("LABEL_0",), "regression"),
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b"), "single_label_classification"),
        ({"id2label": {"0": "score"}}, ("score",), "regression"),
        (
            {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
            ("a", "b"),
            "multi_label_classification",
        ),
        (
            {"num_labels": 3, "problem_type": "regression"},
            ("LABEL_0", "LABEL_1", "LABEL_2"),
            "regression",
        ),
        ({"problem_type": None}, ("LABEL_0", "LABEL_1"), "single_label_classification"),
    ],
)
def test_labels_and_problem_are_those_of_transformers(
    tmp_path: Path, config: dict[str, Any], names: tuple[str, ...], problem_type: str
) -> None:
    head = head_of(tmp_path, **config)
    assert (head.names, head.problem_type) == (names, problem_type)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"1": "b"}}, "id2label is .*; it must map the numbers from 0 to label names"),
        ({"id2label": ["a"]}, ".*; it must map the numbers from 0"),
        ({"id2label": {}}, ".*; it must map the numbers from 0"),
        ({"num_labels": 0}, "num_labels is 0; it must be 1 or more"),
        ({"num_labels": "2"}, "num_labels is '2'; it must be 1 or more"),
        ({"problem_type": "magic"}, "problem_type is 'magic'; it must be one of single_label_cla"),
    ],
)
def test_labels_that_make_no_sense_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        head_of(tmp_path, **config)


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


def test_only_a_classifier_has_a_head(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "no", "1": "yes"}}')
    loaded = LoadedModel.from_folder(HashEncoder(100), tmp_path, "classify")
    assert loaded.head is not None
    assert loaded.head.names == ("no", "yes")
    assert LoadedModel.from_folder(HashEncoder(100), tmp_path, "embed").head is None
