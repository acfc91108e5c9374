"""What all kinds of `sgate bench` write: a record as JSON, and a report of it."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgate_serve.commands.output import check_file, write_json
from sgate_serve.environment import source_commit


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


def check_output(args: argparse.Namespace) -> None:
    """Raise SgateError naming the flag of a file that cannot be written."""
    from sgate_serve.reports.pages import check_report

    for path, flag in ((args.json, "--json"), (args.report, "--report")):
        check_file(path, flag)
    if args.report is not None:
        check_report(args.report)


def write_output(args: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Write the files that were asked for, with the command and the commit of this package."""
    from sgate_serve.reports.pages import write_report

    command = {"command": shlex.join(["sgate", *args.words]), "commit": source_commit()}
    whole = {**command, **record}
    if args.json is not None:
        write_json(whole, args.json)
    if args.report is not None:
        write_report(whole, args.report)


def measure(run: Any, report: Callable[..., None]) -> None:
    """Measure, and report; if interrupted, report the whole rounds, if there are any."""
    try:
        run.measure()
    except KeyboardInterrupt:
        if run.rounds:
            report(is_interrupted=True)
        raise
    report(is_interrupted=False)
