"""Output of commands: one JSON object or lines of text on stdout, files and plots.

Paths are tried before the work starts, which may take hours.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sgate_serve.checkpoint.writer import check_unused, check_writable
from sgate_serve.environment import check_installed
from sgate_serve.errors import OutputError, SystemFailure, writing


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def write_json(value: Any, path: Path) -> None:
    """Write one JSON object to a file; raise OutputError naming it if the system refuses."""
    with writing(path):
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_file(path: Path | None, flag: str = "") -> None:
    """Raise OutputError naming the flag unless a file can be written there; nothing is left.

    A path of None is a flag that is not given. Pipes and devices are not tried.
    """
    if path is None:
        return
    named = f"{flag} {path}".lstrip()
    with writing(path):
        if path.is_dir():
            raise OutputError(f"{named} is a folder; give a file name")
        if not path.parent.is_dir():
            raise OutputError(f"{named}: there is no folder {path.parent}; create it first")
        is_new = not path.exists()
        if is_new or path.is_file():
            path.open("ab").close()
        if is_new:
            path.unlink()


def check_new_folder(path: Path) -> None:
    """Raise SgateError unless a new folder can be written there; nothing is left."""
    check_unused(path)
    check_writable(path)


def load_plots(path: Path | None, wanted_by: str = "--plot") -> ModuleType | None:
    """Return the module of plots, or None without a path.

    Raises SgateError naming the extra that it needs, or the path if no plot can be written there.
    """
    if path is None:
        return None
    check_installed(f"{wanted_by} needs", ["matplotlib"], "plot")
    plots = importlib.import_module("sgate_serve.reports.plots")
    plots.check_format(path)
    return plots


@contextmanager
def how_to_continue(hint: Callable[[], str]) -> Iterator[None]:
    """Add a note on how to continue to an interruption or a failure of the system."""
    try:
        yield
    except BaseException as error:
        is_system = isinstance(error, OutputError) or SystemFailure.of(error) is not None
        if isinstance(error, KeyboardInterrupt | MemoryError) or is_system:
            error.add_note(hint())
        raise
