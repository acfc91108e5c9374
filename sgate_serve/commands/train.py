"""`sgate train`: finds a mask for a base model and recovers its quality."""

import argparse
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sgate_serve.bench.text_table import table_lines
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import how_to_continue, load_plots, print_lines
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.progress import age_of
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.training.train_options import TrainOptions, TrainResult

PLOT_FILE = "training.png"
HEADLINE = "perplexity"
LABELS = {"dense_trained": "dense, trained as long"}


EXAMPLES = """\
examples:
  sgate train my-model --data text.txt --target 0.3 --steps 600 --out my-gates
  sgate train my-model --data text.txt --target-speedup 1.4 --out my-gates
  sgate train my-model --data train.jsonl --text-column body --out my-gates --dry-run
  sgate train my-encoder --task classification --data train.csv --eval-data eval.csv \\
      --text-column sentence --label-column stars --out my-gates

afterwards:
  sgate convert my-model --gates my-gates --to hf,onnx --out my-pruned
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate train BASE --data DATA --out DIR [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("base", metavar="BASE", help="model folder, hub id or GGUF file")
    add_flags(parser, TrainOptions, leave_out=("base",))


def run(args: argparse.Namespace) -> int:
    from sgate_serve.bench.known_block_times import known_block_times
    from sgate_serve.training.option_checks import check_options
    from sgate_serve.training.train import check_packages, train

    check_packages()
    args.base = model_folder(args.base)
    options = options_from(args, TrainOptions)
    check_options(options)
    plots = load_plots(
        None if options.dry_run else options.out / PLOT_FILE, f"{PLOT_FILE} of train"
    )
    with how_to_continue(lambda: continuation(options)):
        result = train(options, known_block_times)
    # These need torch, which is installed.
    from sgate_serve.training.overview import overview_lines
    from sgate_serve.training.processes import processes

    if not processes().is_main_process:
        return 0
    if plots is None:
        print_lines(overview_lines(result.metrics, options))
    else:
        plots.plot_training(result.metrics, result.out / PLOT_FILE)
        print_lines(summary_lines(result, options))
    return 0


def continuation(options: TrainOptions) -> str:
    """Return how to continue a run that was interrupted or ran out of disk or memory."""
    run_dir = run_dir_of(options.out)
    if not run_dir.exists():
        return "nothing was written; repeat the command"
    flag = "" if options.resume else " with --resume"
    return f"{run_dir} holds what is done: repeat the command{flag} to continue"


def summary_lines(result: TrainResult, options: TrainOptions) -> Iterator[str]:
    """Yield the results of a run, and the next command."""
    metrics = result.metrics
    yield (
        f"{result.out}: {metrics['removed']:.2%} of the block linears will be removed, "
        f"{metrics['removed_overall']:.2%} of all parameters ({metrics['method']})"
    )
    if "speed" in metrics:
        yield speed_line(metrics["speed"])
    yield from metric_lines(metrics["scores"], metrics["scores_elsewhere"])
    peak = metrics["peak_rss_bytes"] / 2**30
    yield f"computed in {metrics['precision']}; at most {peak:.1f} GiB of memory"
    yield from (f"note: {note}" for note in metrics["notes"])
    has_base = (result.out / "base").is_dir()
    base = result.out / "base" if has_base else options.base
    if has_base:
        yield f"the gates are for {base}, the model trained here before anything was removed"
    to = "hf,onnx" if Checkpoint.open(str(base)).spec.for_torch_alone is None else "hf"
    yield f"next: sgate convert {base} --gates {result.out} --to {to} --out {result.out}-pruned"


def speed_line(speed: Mapping[str, Any]) -> str:
    """Return the predicted speedup, and where and when the times behind it were measured."""
    return (
        f"predicted to be {speed['predicted_speedup']:.2f} times as fast in {speed['phase']} on "
        f"{speed['engine']} in {speed['precision']}, by block times measured "
        f"{age_of(speed['measured_at'])} on {speed['machine']}"
    )


def metric_lines(
    stages: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield a table with a row for each stage and a column for each metric, with its error.

    Of data `elsewhere`, by name and stage, only the score by which models are compared is shown.
    """
    columns = list(next(iter(stages.values())))
    score = HEADLINE if HEADLINE in columns else columns[0]
    rows = [["held out", *columns, *(f"{score} {name}" for name in elsewhere)]]
    for stage, values in stages.items():
        others = (scores[stage][score] for scores in elsewhere.values())
        rows.append([LABELS.get(stage, stage), *map(_cell, (*values.values(), *others))])
    yield from table_lines(rows)


def _cell(metric: Mapping[str, Any]) -> str:
    error = metric["standard_error"]
    return f"{metric['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")
