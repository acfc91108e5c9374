"""What a report consists of, before it is Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row is the head, the first column names the rows.

    Cells are numbers, unless the table `is_text`.
    """

    rows: Sequence[Sequence[str]]
    is_text: bool = False


@dataclass(frozen=True)
class Bars:
    """Horizontal bars of stacked parts: (label, value of each part), in `unit`."""

    parts: Sequence[str]
    bars: Sequence[tuple[str, Sequence[float]]]
    unit: str


@dataclass(frozen=True)
class Curves:
    """Lines through points (x, y, label of the point), by name."""

    lines: Sequence[tuple[str, Sequence[tuple[float, float, str]]]]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Profile:
    """For each layer how much is left of how much, both in `unit`."""

    layers: Sequence[tuple[float, float]]
    unit: str


Part = str | Table | Bars | Curves | Profile


@dataclass(frozen=True)
class Section:
    """A titled part of a report; plain strings are the points of a list."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """A report: its title and sections."""

    title: str
    sections: Sequence[Section]
