"""Reads the records of files and of named datasets, and examples with their labels."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgate_serve.data.hub import TRAIN, dataset_records, is_dataset_name
from sgate_serve.errors import TrainingError

Label = str | int | float


@dataclass(frozen=True)
class Record:
    """One record, and its position for error messages."""

    where: str
    values: Mapping[str, Any]

    def text(self, name: str = "text") -> str:
        """Return a string field; raise TrainingError if it is missing or not a string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise TrainingError(f"{self.where}: no string `{name}`; each record needs one")
        return value


@dataclass(frozen=True)
class Example:
    """A text or a pair of texts, with a class (its name or number) or a float."""

    where: str
    text: str
    text_pair: str | None
    label: Label


def read_text(path: Path) -> str:
    """Return a file's text; raise TrainingError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as UTF-8 text: {error}") from error


def read_records(path: Path, splits: tuple[str, ...] = TRAIN) -> Iterator[Record]:
    """Yield the records of a `.jsonl` or `.csv` file, or of the first of `splits` a dataset has.

    Raises TrainingError for an unreadable file or an unknown dataset.
    """
    if is_dataset_name(path):
        yield from (Record(*record) for record in dataset_records(path, splits))
        return
    text = read_text(path)
    if path.suffix == ".csv":
        for number, values in enumerate(csv.DictReader(text.splitlines(keepends=True)), 1):
            yield Record(f"{path}, record {number}", values)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _jsonl_record(line, f"{path}, line {number}")


def _jsonl_record(line: str, where: str) -> Record:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{where}: not JSON: {error}") from error
    return Record(where, values if isinstance(values, dict) else {})


def read_examples(path: Path, splits: tuple[str, ...] = TRAIN) -> list[Example]:
    """Return the labelled examples of a file, with labels all of one type: str, int or float.

    Among floats, whole numbers count as floats. Raises TrainingError for an empty file, an unknown
    suffix, a record without text or label, or labels of several types.
    """
    if path.suffix not in (".jsonl", ".csv") and not is_dataset_name(path):
        raise TrainingError(f"{path}: labelled data must be .jsonl or .csv, or a dataset's name")
    records = list(read_records(path, splits))
    if not records:
        raise TrainingError(f"{path} holds no records; give a file with at least one example")
    labels = [_label(record) for record in records]
    if path.suffix == ".csv":
        labels = _typed(labels)
    kinds = {type(label) for label in labels}
    if kinds == {int, float}:
        labels, kinds = [float(label) for label in labels], {float}
    if len(kinds) > 1:
        raise TrainingError(
            f"{path}: some labels are names, others numbers; give class names throughout, or "
            "numbers throughout"
        )
    return [_example(record, label) for record, label in zip(records, labels, strict=True)]


def _example(record: Record, label: Label) -> Example:
    pair = record.text("text_pair") if record.values.get("text_pair") is not None else None
    return Example(record.where, record.text(), pair, label)


def _label(record: Record) -> Label:
    label = record.values.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int | float) or label == "":
        raise TrainingError(
            f"{record.where}: no `label`; each record needs a class (a string or a whole number) "
            "or, for a regression, a float"
        )
    return label


def _typed(labels: Sequence[Label]) -> list[Label]:
    """Return a CSV's labels as whole numbers or floats, if all of them parse as such."""
    for kind in (int, float):
        try:
            return [kind(label) for label in labels]
        except ValueError:
            continue
    return list(labels)
