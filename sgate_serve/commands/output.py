"""Output of commands: one JSON object or lines of text on stdout, and plots."""

import importlib
import json
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from sgate_serve.environment import check_installed


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def load_plots(wanted_by: str = "--plot") -> ModuleType:
    """Return the module of plots; raise SgateError naming the extra that it needs."""
    check_installed(f"{wanted_by} needs", ["matplotlib"], "plot")
    return importlib.import_module("sgate_serve.reports.plots")
