"""Printing for commands: one JSON object on stdout, or lines for a person."""

import json
from collections.abc import Iterable
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
