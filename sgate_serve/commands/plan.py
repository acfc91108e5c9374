"""`sgate plan`: shows what would be removed, without writing a model."""

import argparse
from pathlib import Path

from converters.convert import make_plan, open_masked
from converters.explain import plan_table
from sgate_serve.commands.flags import add_gates_flags, add_target_flags, target_from
from sgate_serve.commands.output import print_json, print_lines
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.json_form import plan_to_json, write_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model folder or hub id")
    add_gates_flags(parser)
    add_target_flags(parser)
    parser.add_argument("--out", type=Path, help="write the plan to this file")
    parser.add_argument(
        "--explain", action="store_true", help="give the rule and the cause of each removal"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")


def run(args: argparse.Namespace) -> int:
    # A plan needs masks and headers; the weights of a large model are not read for it.
    masked = open_masked(args.checkpoint, args.gates, gates_kind=args.gates_kind, whole_base=False)
    plan = make_plan(masked, target_from(args), args.index_price)
    if args.out is not None:
        write_plan(plan, args.out)
    if args.json:
        figures = Figures.of(plan, masked.spec)
        print_json(plan_to_json(plan) | {"figures": vars(figures), **figures.headline()})
    else:
        print_lines(plan_table(plan, masked.spec, args.explain))
    return 0
