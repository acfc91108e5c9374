"""What all kinds of `sgate bench` write: a record as JSON, and a report of it."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sgate_serve.commands.output import check_file, write_json
from sgate_serve.environment import source_commit
from sgate_serve.errors import OutputError

Reported = TypeVar("Reported")


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", default="onnx", help="auto, onnx, torch or vllm (default: onnx)"
    )


def add_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of both files, in a group of their own."""
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    output.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write a report: a page with pictures (.html), which needs no network, or Markdown "
        "(.md)",
    )
    return output


def check_output(args: argparse.Namespace, *inputs: str | Path | None) -> None:
    """Raise SgateError naming the flag of a file that cannot be written, or that is read.

    `inputs` are files, and folders whose files must not be replaced.
    """
    from sgate_serve.reports.pages import check_report

    given = {flag: path for flag, path in _files(args).items() if path is not None}
    for flag, path in given.items():
        check_file(path, flag)
        for source in inputs:
            if source is not None and _is_inside(path, Path(source)):
                raise OutputError(f"{flag} {path} would replace what is read; give another file")
    if len({path.resolve() for path in given.values()}) < len(given):
        raise OutputError(f"{' and '.join(given)} name the same file; give two")
    if args.report is not None:
        check_report(args.report)


def _files(args: argparse.Namespace) -> dict[str, Path | None]:
    return {"--json": args.json, "--report": args.report, "--plot": getattr(args, "plot", None)}


def _is_inside(path: Path, source: Path) -> bool:
    """Say whether a file is `source`, or one of the files of that folder."""
    return path.is_file() and path.resolve().is_relative_to(source.resolve())


def write_output(
    args: argparse.Namespace, record: Mapping[str, Any], *, is_last: bool = True
) -> None:
    """Write the files that were asked for, with the command and the commit of this package.

    What is not a file, such as a pipe, gets only the last record.
    """
    from sgate_serve.reports.pages import write_report

    command = {"command": shlex.join(["sgate", *args.words]), "commit": source_commit()}
    whole = {**command, **record}
    for path, write in ((args.json, write_json), (args.report, write_report)):
        if path is not None and (is_last or path.is_file() or not path.exists()):
            write(whole, path)


def measure(run: Any, report: Callable[..., Reported]) -> Reported:
    """Measure, and return the report; if interrupted, report the whole rounds, if there are any."""
    try:
        run.measure()
    except KeyboardInterrupt as interruption:
        if run.rounds:
            report(is_interrupted=True)
        else:
            interruption.add_note("no round was whole, so there is nothing to report")
        raise
    return report(is_interrupted=False)
