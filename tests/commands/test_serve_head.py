"""The labels that `sgate serve` gives a classifier: config.json's, or transformers' own."""

from typing import Any

import pytest

from sgate_serve.commands.serve import head_of
from sgate_serve.errors import CheckpointError


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
    config: dict[str, Any], names: tuple[str, ...], problem_type: str
) -> None:
    labels = head_of(config, "config.json")
    assert (labels.names, labels.problem_type) == (names, problem_type)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"1": "b"}}, "id2label is .*; it must map every number from 0 to a label's"),
        ({"id2label": ["a"]}, ".*; it must map every number from 0"),
        ({"id2label": {}}, ".*; it must map every number from 0"),
        ({"problem_type": "magic"}, "problem_type is 'magic'; it must be one of single_label_cla"),
    ],
)
def test_labels_that_make_no_sense_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m/config\.json: {message}"):
        head_of(config, "m/config.json")


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, None),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, "sigmoid"),
        ({"problem_type": "regression"}, "identity"),
        ({"problem_type": "single_label_classification"}, "sigmoid"),
        ({"num_labels": 2, "sbert_ce_default_activation_function": "x.Magic"}, None),
    ],
)
def test_a_cross_encoder_has_the_activation_of_its_config(
    config: dict[str, Any], activation: str | None
) -> None:
    assert head_of({"num_labels": 1, **config}, "config.json").activation == activation


def test_an_unknown_activation_is_refused() -> None:
    config = {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}
    with pytest.raises(CheckpointError, match=r"cross-encoder is 'torch.nn.Tanh'; it must be one"):
        head_of(config, "config.json")
