"""`sgate plan`: shows what would be removed, without writing a model."""

import argparse
import sys
from pathlib import Path

from converters.convert import make_plan, open_masked
from converters.explain import plan_table
from sgate_serve.commands.advice import next_step
from sgate_serve.commands.flags import add_gates_flags, add_target_flags, target_from
from sgate_serve.commands.output import check_file, print_json, print_lines
from sgate_serve.errors import writing
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.json_form import plan_to_json, write_plan

EXAMPLES = """\
examples:
  sgate plan my-model --gates my-gates --explain
  sgate plan my-model --gates my-gates --align 64 --tensor-parallel 2
  sgate plan my-zeroed-model    # the mask is the zero rows and columns of the weights
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate plan CHECKPOINT [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="model folder, hub id or GGUF file"
    )
    add_gates_flags(parser)
    add_target_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="FILE", help="write the plan to this file")
    output.add_argument(
        "--explain", action="store_true", help="give the rule and the cause of each removal"
    )
    output.add_argument("--json", action="store_true", help="print the plan as one JSON object")


def run(args: argparse.Namespace) -> int:
    check_file(args.out, "--out")
    args.checkpoint = model_folder(args.checkpoint)
    # A plan needs masks and headers; the weights of a large model are not read for it.
    masked = open_masked(args.checkpoint, args.gates, gates_kind=args.gates_kind, whole_base=False)
    plan = make_plan(masked, target_from(args), args.index_price)
    if args.out is not None:
        with writing(args.out):
            write_plan(plan, args.out)
    figures = Figures.of(plan, masked.spec)
    hint = next_step(masked.base, args.gates, figures)
    if args.json:
        print_json(plan_to_json(plan) | {"figures": vars(figures), **figures.headline()})
    else:
        print_lines(plan_table(plan, masked.spec, args.explain))
    if hint is not None:
        print(hint, file=sys.stderr if args.json else sys.stdout)
    return 0
