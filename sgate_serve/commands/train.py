"""`sgate train`: find gates for a base model and recover under them."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import load_plots, print_lines
from sgate_serve.training.train_options import TrainOptions, TrainResult

PLOT_FILE = "training.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="model folder or hub id")
    add_flags(parser, TrainOptions, leave_out=("base",))


def run(args: argparse.Namespace) -> int:
    from sgate_serve.training import train
    from sgate_serve.training.outline import outline_lines

    options = options_from(args, TrainOptions)
    plots = None if options.dry_run else load_plots(f"{PLOT_FILE} of train")
    result = train(options)
    from sgate_serve.training.processes import processes  # behind train, which checks for it

    if not processes().is_main_process:
        return 0
    if plots is None:
        print_lines(outline_lines(result.metrics, options))
    else:
        plots.plot_training(result.metrics, result.out / PLOT_FILE)
        print_lines(summary_lines(result, options))
    return 0


def summary_lines(result: TrainResult, options: TrainOptions) -> Iterator[str]:
    """Yield what came of a run, and the command that comes next."""
    metrics = result.metrics
    yield (
        f"{result.out}: {metrics['removed']:.2%} of the block linears will go, "
        f"{metrics['removed_overall']:.2%} of all parameters ({metrics['method']})"
    )
    yield from score_lines(metrics["scores"])
    yield from (f"note: {note}" for note in metrics["notes"])
    has_base = (result.out / "base").is_dir()
    base = result.out / "base" if has_base else options.base
    if has_base:
        yield f"the gates are for {base}, the model trained here before anything was removed"
    yield f"next: sgate convert {base} --gates {result.out} --to hf,onnx --out {result.out}-pruned"


def score_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table: a row for each stage, a column for each score with its standard error."""
    names = list(next(iter(scores.values())))
    yield "held out   " + "".join(f"{name:>20}" for name in names)
    for stage, values in scores.items():
        cells = (f"{v['value']:.4f} ± {v['standard_error']:.4f}" for v in values.values())
        yield f"{stage:<11}" + "".join(f"{cell:>20}" for cell in cells)
