"""`sgate bench compare`: dense and pruned models, interleaved in one run."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.bench.workload import AnyWorkload, PoolingWorkload, Workload
from sgate_serve.commands.bench_output import (
    add_engine,
    add_output,
    check_output,
    measure,
    write_output,
)
from sgate_serve.commands.flags import add_flags, add_keep_flag
from sgate_serve.commands.output import check_file, how_to_continue, load_plots, print_lines
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.options import flag_of

FLAGS = tuple(field.name for field in fields(Workload) if field.name != "engine_arguments")
# The share of the ideal speedup below which the table points to --explain.
WORTH_A_LOOK = 0.9
TEXT = "time dense and pruned models, interleaved in one run"
EPILOG = """\
ENGINE ARGS, after `--`: those of `sgate serve` that the options above do not set

examples:
  sgate bench compare my-model my-pruned --json speed.json --plot speed.png
  sgate bench compare my-model my-pruned --rounds 25 -- --precision int8
  sgate bench compare my-model my-pruned --explain
  sgate bench compare my-model my-pruned --data held-out.txt --report speed.html
  sgate bench compare my-model my-pruned --beside masked=my-masked-model
"""


def add_arguments(kinds: Any) -> None:
    """Add the kind `compare` to those of `sgate bench`."""
    parser = kinds.add_parser(
        "compare",
        help=TEXT,
        usage="sgate bench compare DENSE PRUNED [options] [-- ENGINE ARGS]",
        description=TEXT,
        epilog=EPILOG,
    )
    parser.set_defaults(engine_arguments=[])
    parser.add_argument("dense", metavar="DENSE", help="dense model folder")
    parser.add_argument("pruned", metavar="PRUNED", help="converted model folder")
    add_keep_flag(parser, "PRUNED")
    parser.add_argument(
        "--beside",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another model to time in the same rounds, such as the masked dense one; repeatable",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also say where the time of both models goes, and what limits the speedup; reports "
        "always do",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="also measure the quality of both models on this data, as `sgate eval` does",
    )
    add_engine(parser)
    output = add_output(parser)
    output.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the comparison to this file"
    )
    # The models decide which workload it is, and so its defaults.
    add_flags(parser, Workload, leave_out={"engine_arguments"}, keep_unset=True, group="workload")


def run(args: argparse.Namespace) -> int:
    from sgate_serve.bench.compare import ComparisonRun
    from sgate_serve.bench.comparison import comparison_lines
    from sgate_serve.bench.explain import check_explainable, explain, explanation_lines
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines.table import choose_engine
    from sgate_serve.loaders.sized_folder import open_size

    plots = load_plots(args.plot)
    check_file(args.plot, "--plot")
    folders = _folders_by_name(args.beside)
    check_output(args, args.dense, args.pruned, args.data, *folders.values())
    dense, pruned = Checkpoint.open(args.dense), open_size(args.pruned, args.keep)
    beside = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    workload = workload_from(args, dense.spec.task)
    chosen = choose_engine(args.engine, dense.spec.for_torch_alone)
    own = ComparisonRun(dense, pruned, chosen, workload, beside)
    _check_undrafted(own)
    explains = args.explain or args.report is not None
    if explains:
        check_explainable(own.engine, workload)
    # First what may refuse its input.
    found = _quality(args, own) if args.data is not None else {}
    if args.keep is not None:  # its folder is one of the cache
        found["pruned"] = f"{args.pruned}, size {args.keep:g}"

    def report(*, is_interrupted: bool) -> tuple[Any, dict[str, Any]]:
        """Print and write the result; return it and its record."""
        result = own.result(is_interrupted=is_interrupted)
        record = result.to_json() | found
        print_lines(comparison_lines(record))
        if not explains and least_efficiency(result) < WORTH_A_LOOK:
            print_lines(["to see what keeps the speedup from its ideal, add --explain"])
        write_output(args, record, is_last=is_interrupted or not explains)
        if plots is not None:
            plots.plot_comparison(result, args.plot)
        return result, record

    result, record = measure(own, report)
    if explains:
        with how_to_continue(lambda: "the explanation is missing, the speedups are written"):
            explanation = explain(own, result)
        print_lines(["", *explanation_lines(explanation)])
        write_output(args, record | {"explanation": explanation})
    return 0


def _given(own: Any) -> Any:
    """Return the options among the words after `--`; None for an engine with words of its own."""
    from sgate_serve.loaders.timing import given_options

    words, is_pooling = own.workload.engine_arguments, isinstance(own.workload, PoolingWorkload)
    return given_options(own.engine, words, is_pooling=is_pooling)


def _check_undrafted(own: Any) -> None:
    if getattr(_given(own), "draft", None) is not None:
        raise EngineError(
            "--draft: this comparison times steps of one token; see what drafts save with `sgate "
            "bench throughput` or `sgate bench latency`"
        )


def _quality(args: argparse.Namespace, own: Any) -> dict[str, Any]:
    """Measure and print the quality of both models in the precision that is timed."""
    from sgate_serve.bench.comparison import DENSE, PRUNED
    from sgate_serve.reports.evaluation import EvalOptions, evaluate

    given = _given(own)
    if given is None:
        raise EngineError(
            f"--data: engine {own.engine} is timed in another precision than quality is measured "
            "in; give --engine onnx or torch, or leave it out and use `sgate eval`"
        )
    scores = {}
    named = {DENSE: (own.dense, args.dense, None), PRUNED: (own.pruned, args.pruned, args.keep)}
    for name, (model, folder, keep) in named.items():
        options = EvalOptions(
            str(folder),
            args.data,
            engine=own.engine,
            precision=getattr(given, "precision", None),
            keep=keep,
            seq_len=min(EvalOptions.seq_len, model.spec.max_positions),
        )
        evaluation = evaluate(options)
        print_lines([*evaluation.lines(), ""])
        scores[name] = evaluation.to_json()
    return {"quality": scores}


def least_efficiency(result: Any) -> float:
    """Return the lowest share of its ideal that the pruned model's speedup reaches in any phase."""
    from sgate_serve.bench.comparison import PRUNED

    return float(min(phase.speedups[PRUNED].efficiency for phase in result.results.values()))


def workload_from(args: argparse.Namespace, task: str) -> AnyWorkload:
    """Return the workload of a task, with the given flags and defaults for the others.

    Raises EngineError for a flag that does not apply to models that read texts.
    """
    given = {name: value for name in FLAGS if (value := getattr(args, name)) is not None}
    arguments = tuple(args.engine_arguments)
    if task == CAUSAL_LM:
        return Workload(**given, engine_arguments=arguments)
    known = {field.name for field in fields(PoolingWorkload)}
    for name in given:
        if name not in known:
            raise EngineError(
                f"{flag_of(name)} does not apply: these models read texts and decode nothing"
            )
    return PoolingWorkload(**given, engine_arguments=arguments)


def _named_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER")
    return name, folder


def _folders_by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return name → folder; raise SgateError for a name given twice."""
    folders: dict[str, str] = {}
    for name, folder in pairs:
        if name in folders:
            raise SgateError(f"--beside {name}: given for {folders[name]} and for {folder}")
        folders[name] = folder
    return folders
