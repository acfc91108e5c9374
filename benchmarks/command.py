"""The command line of a benchmark script: one flag per option, and the file for the record."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Options = TypeVar("Options")


def command_line(name: str, options: Any) -> str:
    """Return the command that repeats a run, without `--json`."""
    flags = (f"--{key} {value}" for key, value in asdict(options).items() if value != "")
    return f"python -m benchmarks.{name} {' '.join(flags)}"


def run_script(
    name: str, description: str | None, options: type[Options], run: Callable[[Options], Any]
) -> Any:
    """Parse `--json FILE` and a flag for each field of `options`; run, and write the record.

    Returns the record.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", type=Path, required=True, help="file to write the record to")
    for field in fields(options):  # type: ignore[arg-type]
        text, value = field.metadata["help"], field.default
        parser.add_argument(
            f"--{field.name}", type=type(value), default=value, help=f"{text} (default: {value})"
        )
    arguments = vars(parser.parse_args())
    path = arguments.pop("json")
    record = run(options(**arguments))
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
