"""Labelled records: what their labels are, and how a model numbers them."""

from pathlib import Path

import pytest

from sgate_serve.data.examples import Labels
from sgate_serve.data.records import Example, read_examples
from sgate_serve.errors import TrainingError


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0", "2"], [0, 2]),
        (["0", "2.5"], [0.0, 2.5]),
        (["yes", "no"], ["yes", "no"]),
        (["yes", "1"], ["yes", "1"]),
    ],
)
def test_labels_of_a_csv_are_of_one_kind(
    values: list[str], expected: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f'"a, b",{value}\n' for value in values))
    examples = read_examples(path)
    assert [example.label for example in examples] == expected
    assert [type(example.label) for example in examples] == [type(label) for label in expected]
    assert examples[0].text == "a, b" and examples[0].text_pair is None


def test_whole_numbers_among_floats_are_floats(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "text_pair": "c", "label": 0.5}')
    examples = read_examples(path)
    assert [example.label for example in examples] == [1.0, 0.5]
    assert examples[1].text_pair == "c"
    assert Labels.of_examples(examples, path) == Labels(())


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [("b", ("a", "b"), 1), (0, ("a", "b"), 0), (2, (), 2.0), (0.5, (), 0.5)],
)
def test_a_label_is_numbered(label: str | int, names: tuple[str, ...], number: float) -> None:
    assert Labels(names).number(Example("here", "text", None, label)) == number


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        (
            "c",
            ("a", "b"),
            r": label 'c' is not one of the 2 classes \(a, b\); correct it, or add",
        ),
        (2, ("a", "b"), "label 2 is not one of the 2 classes"),
        (0.5, ("a", "b"), r"label 0\.5 is not one of the 2 classes"),
        ("a", (), "label 'a' is not a number"),
    ],
)
def test_a_label_without_a_place_is_refused(
    label: str | int, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        Labels(names).number(Example("here", "text", None, label))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"data\.txt: labelled data must be \.jsonl or \.csv, or"
    ):
        read_examples(tmp_path / "data.txt")
    with pytest.raises(TrainingError, match=r"data\.csv cannot be read as UTF-8 text"):
        read_examples(tmp_path / "data.csv")
