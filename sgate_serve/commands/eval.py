"""`sgate eval`: measures a dense, masked or converted model on held-out data."""

import argparse
from pathlib import Path

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_json, print_lines
from sgate_serve.reports.evaluation import EvalOptions, evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model folder or hub id")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="held-out data: text for a causal LM, labelled .jsonl or .csv for other models",
    )
    add_flags(parser, EvalOptions, leave_out=("checkpoint", "data"))
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    result = evaluate(options_from(args, EvalOptions))
    if args.json:
        print_json(result.to_json())
    else:
        print_lines(result.lines())
    return 0
