"""`sgate bench serve`: loads servers with an OpenAI-compatible API, ours or others'."""

import argparse
from typing import Any

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.commands.bench_output import add_output, check_output, write_output
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_lines
from sgate_serve.errors import BenchError

TEXT = "load a server with an OpenAI-compatible API, or two by turns"
# The exit status of a run in which every request failed.
NOTHING_ANSWERED = 1
EPILOG = """\
examples:
  sgate bench serve http://127.0.0.1:8000
  sgate bench serve http://127.0.0.1:8000 --request-rate 4 --slo ttft:500 tpot:100
  sgate bench serve http://127.0.0.1:8000 --dataset conversation_trace.jsonl --duration 600
  sgate bench serve http://127.0.0.1:8000 --against http://127.0.0.1:8001 --json speed.json
"""


def add_arguments(kinds: Any) -> None:
    """Add the kind `serve` to those of `sgate bench`."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        "serve",
        help=TEXT,
        usage="sgate bench serve URL [--against URL] [options]",
        description=TEXT,
        epilog=EPILOG,
    )
    parser.add_argument("url", metavar="URL", help="address, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--against",
        metavar="URL",
        help="a server to load by turns with the first, in the same run; figures have a ratio",
    )
    output = add_output(parser)
    output.add_argument(
        "--slo",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:MS",
        help="limits on ttft, tpot and e2el in milliseconds; requests that keep all are goodput",
    )
    add_flags(parser, LoadOptions, leave_out={"slo"})


def run(args: argparse.Namespace) -> int:
    from sgate_serve.bench.load.client import base_url
    from sgate_serve.bench.load.run import LoadRun, measure_all

    options = options_from(args, LoadOptions, slo=tuple(args.slo))
    urls = [base_url(args.url)]
    if args.against is not None:
        urls.append(base_url(args.against, "--against"))
    check_output(args, args.dataset)
    runs: list[LoadRun] = []
    try:
        measure_all(urls, options, runs)
    except KeyboardInterrupt:
        _report(args, runs, is_interrupted=True)
        raise
    _report(args, runs, is_interrupted=False)
    if not any(run.has_traces for run in runs):
        raise BenchError("no request was due within --duration; give more, or a higher rate")
    return 0 if any(run.has_answers for run in runs) else NOTHING_ANSWERED


def _report(args: argparse.Namespace, runs: list[Any], *, is_interrupted: bool) -> None:
    """Print and write what was measured, if any request has ended."""
    from sgate_serve.bench.load.report import record_lines, record_of

    measured = [run for run in runs if run.has_traces]
    if not measured:
        return
    command = ["sgate", *args.words]
    record = record_of(measured, command, is_sweep=args.sweep, is_interrupted=is_interrupted)
    print_lines(record_lines(record))
    write_output(args, record)
