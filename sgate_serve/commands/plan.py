"""`sgate plan`: decide what goes, from masks and headers, without writing a model."""

import argparse
from pathlib import Path

from converters.convert import make_plan, open_masked
from converters.explain import plan_table
from sgate_serve.commands.output import print_json, print_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model folder or hub id")
    parser.add_argument("--gates", type=Path, help="gates folder of any kind, or its file")
    parser.add_argument(
        "--gates-kind", help="what --gates is: sgate, finegates or peft (default: detected)"
    )
    parser.add_argument("--align", type=int, default=1, help="make MLP widths multiples of N")
    parser.add_argument("--out", type=Path, help="write the plan to this file")
    parser.add_argument("--explain", action="store_true", help="name rule and cause of removals")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")


def run(args: argparse.Namespace) -> int:
    masked = open_masked(args.checkpoint, args.gates, gates_kind=args.gates_kind)
    plan = make_plan(masked, args.align)
    if args.out is not None:
        plan.write(args.out)
    if args.json:
        figures = {
            "removed": plan.removed(masked.spec),
            "removed_overall": plan.removed_overall(masked.spec),
        }
        print_json(plan.to_json() | figures)
    else:
        print_lines(plan_table(plan, masked.spec, args.explain))
    return 0
