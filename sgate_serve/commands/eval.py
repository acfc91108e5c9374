"""`sgate eval`: measures a dense, masked or converted model on held-out data."""

import argparse

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_json, print_lines
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.reports.evaluation import EvalOptions, evaluate

EXAMPLES = """\
examples:
  sgate eval my-pruned --data eval.txt
  sgate eval my-classifier --data eval.csv --text-column sentence --label-column stars
  sgate eval my-model --gates my-gates --data eval.txt    # the masked dense model, on torch
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate eval CHECKPOINT --data DATA [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="model folder, hub id or GGUF file"
    )
    add_flags(parser, EvalOptions, leave_out=("checkpoint",))
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    args.checkpoint = model_folder(args.checkpoint)
    result = evaluate(options_from(args, EvalOptions))
    if args.json:
        print_json(result.to_json())
    else:
        print_lines(result.lines())
    return 0
