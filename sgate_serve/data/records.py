"""Reads the records of files and of named datasets, and examples with their labels."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from sgate_serve.data.hub import TRAIN, check_exists, dataset_records, is_dataset_name
from sgate_serve.errors import TrainingError, did_you_mean

Label = str | int | float
TEXT_FLAG, PAIR_FLAG, LABEL_FLAG = "--text-column", "--text-pair-column", "--label-column"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; without `text_pair` each text stands alone."""

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"


OWN_COLUMNS = Columns()


@dataclass(frozen=True)
class Record:
    """One record, and its position for error messages."""

    where: str
    values: Mapping[str, Any]

    def text(self, name: str, flag: str) -> str:
        """Return a string; raise TrainingError naming `flag` if it is missing or not a string."""
        if name not in self.values:
            raise TrainingError(
                f"{self.where}: no string `{name}`; each record needs one, and "
                f"{self._columns(name, flag)}"
            )
        value = self.values[name]
        if not isinstance(value, str):
            raise TrainingError(f"{self.where}: `{name}` is {brief(value)}, not a string")
        return value

    def label(self, name: str) -> Label:
        """Return a class's name or number, or a float.

        Raises TrainingError naming the flag if it is missing or of another type.
        """
        if name not in self.values:
            raise TrainingError(
                f"{self.where}: no `{name}`; each record needs a class or, for a regression, a "
                f"float, and {self._columns(name, LABEL_FLAG)}"
            )
        value = self.values[name]
        is_label = isinstance(value, str | int | float) and not isinstance(value, bool)
        if not is_label or value == "":
            raise TrainingError(
                f"{self.where}: `{name}` is {brief(value)}; each record needs a class (a string or "
                "a whole number) or, for a regression, a float"
            )
        label: Label = value
        return label

    def _columns(self, name: str, flag: str) -> str:
        """Say which columns there are, and how to choose another one."""
        found = [str(column) for column in self.values if column is not None]
        if not found:
            return "the record has no columns at all"
        return (
            f"its columns are {', '.join(found):.200}: choose one with {flag}"
            f"{did_you_mean(name, found)}"
        )


@dataclass(frozen=True)
class Example:
    """A text or a pair of texts, with a class (its name or number) or a float."""

    where: str
    text: str
    text_pair: str | None
    label: Label


def read_text(path: Path) -> str:
    """Return a file's text without a byte order mark; raise TrainingError if it is not UTF-8."""
    check_exists(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from error


def read_records(path: Path, splits: tuple[str, ...] = TRAIN) -> Iterator[Record]:
    """Yield the records of a `.jsonl` or `.csv` file, or of the first of `splits` a dataset has.

    Raises TrainingError for an unreadable file or an unknown dataset.
    """
    if is_dataset_name(path):
        yield from (Record(*record) for record in dataset_records(path, splits))
        return
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        yield from _csv_records(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _jsonl_record(line, f"{path}, line {number}")


def _csv_records(text: str, path: Path) -> Iterator[Record]:
    """Yield the rows under the header line, of columns that commas separate."""
    # A document may be longer than the module's own limit of 128 KiB.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        names = reader.fieldnames or ()
        for separator, words in ((";", "semicolons"), ("\t", "tabs")):
            if len(names) == 1 and separator in names[0]:
                raise TrainingError(
                    f"{path}: its columns are separated by {words}; separate them by commas"
                )
        for number, values in enumerate(reader, 1):
            yield Record(f"{path}, record {number}", values)
    except csv.Error as error:
        raise TrainingError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _jsonl_record(line: str, where: str) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainingError(
            f'{where}: not JSON: {error}; give one object to a line, such as {{"text": "…"}}'
        ) from error
    if not isinstance(values, dict):
        raise TrainingError(
            f"{where}: {brief(values)} is not an object; give one to a line, such as "
            '{"text": "…"}'
        )
    return Record(where, values)


def read_examples(
    path: Path, splits: tuple[str, ...] = TRAIN, columns: Columns = OWN_COLUMNS
) -> list[Example]:
    """Return the labelled examples of a file, with labels all of one type: str, int or float.

    Among floats, whole numbers count as floats. Raises TrainingError for an empty file, an unknown
    suffix, a record without text or label, or labels of several types.
    """
    check_exists(path)
    if path.suffix.lower() not in (".jsonl", ".csv") and not is_dataset_name(path):
        raise TrainingError(f"{path}: labelled data must be .jsonl or .csv, or a dataset's name")
    records = list(read_records(path, splits))
    if not records:
        raise TrainingError(f"{path} holds no records; give a file with at least one example")
    labels = [record.label(columns.label) for record in records]
    if path.suffix.lower() == ".csv":
        labels = _typed(labels)
    _check_finite(records, labels)
    kinds = {type(label) for label in labels}
    if kinds == {int, float}:
        labels, kinds = [float(label) for label in labels], {float}
    if len(kinds) > 1:
        raise TrainingError(
            f"{path}: some labels are names, others numbers; give class names throughout, or "
            "numbers throughout"
        )
    return [_example(record, label, columns) for record, label in zip(records, labels, strict=True)]


def _example(record: Record, label: Label, columns: Columns) -> Example:
    text = record.text(columns.text, TEXT_FLAG)
    # Only a column that was asked for must be there.
    is_pair = columns.text_pair != OWN_COLUMNS.text_pair
    if not is_pair and record.values.get(columns.text_pair) is None:
        return Example(record.where, text, None, label)
    return Example(record.where, text, record.text(columns.text_pair, PAIR_FLAG), label)


def _check_finite(records: Sequence[Record], labels: Sequence[Label]) -> None:
    for record, label in zip(records, labels, strict=True):
        if isinstance(label, float) and not math.isfinite(label):
            raise TrainingError(f"{record.where}: label {label} is not a number; correct it")


def _typed(labels: Sequence[Label]) -> list[Label]:
    """Return a CSV's labels as whole numbers or floats, if all of them parse as such."""
    for kind in (int, float):
        try:
            return [kind(label) for label in labels]
        except ValueError:
            continue
    return list(labels)
