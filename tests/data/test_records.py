"""Labelled records: what their labels are, and how a model numbers them."""

from pathlib import Path

import pytest

from sgate_serve.data.examples import Labels
from sgate_serve.data.records import Columns, Example, read_examples
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
    (tmp_path / "data.txt").write_text("text")
    with pytest.raises(
        TrainingError, match=r"data\.txt: labelled data must be \.jsonl or \.csv, or"
    ):
        read_examples(tmp_path / "data.txt")
    with pytest.raises(TrainingError, match=r"data\.csv: no such file; did you mean .*data\.txt"):
        read_examples(tmp_path / "data.csv")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("first,second,target\na,b,1\nc,d,0\n")
    examples = read_examples(path, columns=Columns("first", "second", "target"))
    assert [(e.text, e.text_pair, e.label) for e in examples] == [("a", "b", 1), ("c", "d", 0)]
    single = read_examples(path, columns=Columns(text="second", label="target"))
    assert [(e.text, e.text_pair) for e in single] == [("b", None), ("d", None)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(),
            "1: no `label`; .* its columns are txt, target: choose one with --label-column",
        ),
        (Columns(label="targets"), "1: no `targets`; .*--label-column; did you mean target"),
        (
            Columns(label="target"),
            "1: no string `text`; .*: choose one with --text-column; did you mean t",
        ),
        (
            Columns("txt", "other", "target"),
            "1: no string `other`; .* are txt, target: choose one with --text-pair-column",
        ),
    ],
)
def test_a_missing_column_is_answered_with_those_that_exist(
    tmp_path: Path, columns: Columns, message: str
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("txt,target\na,1\nb,0\n")
    with pytest.raises(TrainingError, match=rf"data\.csv, record {message}"):
        read_examples(path, columns=columns)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("true", "1: `label` is True; each record needs a class"),
        ("[1]", r"1: `label` is \[1\]; each record"),
        ('""', "1: `label` is ''; each record needs"),
        ("null", "1: `label` is None; each record needs"),
        ("NaN", "1: label nan is not a number; correct it"),
    ],
)
def test_a_label_that_is_none_is_shown(tmp_path: Path, label: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "a", "label": {label}}}\n{{"text": "b", "label": 0.5}}')
    with pytest.raises(TrainingError, match=rf"data\.jsonl, line {message}"):
        read_examples(path)
