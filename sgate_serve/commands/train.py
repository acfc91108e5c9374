"""`sgate train`: train gates on a frozen base model."""

import argparse

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.training.options import TrainOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="model folder or hub id")
    add_flags(parser, TrainOptions, leave_out=("base",))


def run(args: argparse.Namespace) -> int:
    from sgate_serve.training import train

    result = train(options_from(args, TrainOptions))
    metrics = result.metrics
    print(f"{result.out}: {metrics['removed']:.2%} of the block linears will go")
    scores = (f"{value:.2f} {name}" for name, value in metrics["perplexity"].items())
    print(f"held-out perplexity: {', '.join(scores)}")
    return 0
