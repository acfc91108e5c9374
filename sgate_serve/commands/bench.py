"""`sgate bench compare`: dense and pruned models interleaved in one run."""

import argparse
import json
from pathlib import Path

from sgate_serve.bench.workload import Workload
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="compare")
    compare = kinds.add_parser("compare", help="dense against pruned, interleaved in one run")
    compare.add_argument("dense", help="the dense model folder")
    compare.add_argument("pruned", help="the converted folder")
    compare.add_argument("--engine", default="onnx", help="onnx or torch (default: onnx)")
    compare.add_argument("--json", type=Path, help="keep the record in this file")
    compare.add_argument("--plot", type=Path, help="draw the comparison into this file")
    add_flags(compare, Workload)


def run(args: argparse.Namespace) -> int:
    from sgate_serve.bench.compare import compare, comparison_lines
    from sgate_serve.checkpoint import Checkpoint
    from sgate_serve.engines import choose_engine

    dense, pruned = Checkpoint.open(args.dense), Checkpoint.open(args.pruned)
    workload = options_from(args, Workload)
    result = compare(dense, pruned, choose_engine(args.engine), workload)
    record = result.to_json()
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        from sgate_serve.plots import plot_comparison

        plot_comparison(result, args.plot)
    print_lines(comparison_lines(record))
    return 0
