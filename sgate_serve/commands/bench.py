"""`sgate bench`: compares models in one run, measures requests without a server, or loads one."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.bench.offline_workload import (
    LatencyWorkload,
    OfflineWorkload,
    ThroughputWorkload,
)
from sgate_serve.bench.workload import AnyWorkload, PoolingWorkload, Workload
from sgate_serve.commands import bench_serve
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import check_file, load_plots, print_lines, write_json
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.options import flag_of

FLAGS = tuple(field.name for field in fields(Workload) if field.name != "engine_arguments")


EPILOG = """\
ENGINE ARGS, after `--`: those of `sgate serve` that the options above do not set

examples:
  sgate bench compare my-model my-pruned --json speed.json --plot speed.png
  sgate bench compare my-model my-pruned --rounds 25 -- --precision int8
  sgate bench compare my-model my-pruned --explain
  sgate bench compare my-model my-pruned --beside masked=my-masked-model
"""


OFFLINE_EPILOG = """\
ENGINE ARGS, after `--`: those of `sgate serve` that the options above do not set

examples:
  sgate bench {name} my-model
  sgate bench {name} my-model my-pruned --json speed.json -- --precision int8
"""
# The workload and the description of each kind that runs requests without a server.
OFFLINE: Mapping[str, tuple[type[OfflineWorkload], str]] = {
    "throughput": (ThroughputWorkload, "requests and tokens per second of a full queue"),
    "latency": (LatencyWorkload, "seconds that a batch of requests takes"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", title="kinds")
    compare = kinds.add_parser(
        "compare",
        help="time dense and pruned models, interleaved in one run",
        usage="sgate bench compare DENSE PRUNED [options] [-- ENGINE ARGS]",
        description="time dense and pruned models, interleaved in one run",
        epilog=EPILOG,
    )
    compare.set_defaults(engine_arguments=[])
    compare.add_argument("dense", metavar="DENSE", help="dense model folder")
    compare.add_argument("pruned", metavar="PRUNED", help="converted model folder")
    compare.add_argument(
        "--beside",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another model to time in the same rounds, such as the masked dense one; repeatable",
    )
    compare.add_argument(
        "--explain",
        action="store_true",
        help="also say where the time of both models goes, and what limits the speedup",
    )
    _add_engine(compare)
    output = _add_output(compare)
    output.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the comparison to this file"
    )
    # The models decide which workload it is, and so its defaults.
    add_flags(compare, Workload, leave_out={"engine_arguments"}, keep_unset=True, group="workload")
    for name, (workload, text) in OFFLINE.items():
        offline = kinds.add_parser(
            name,
            help=text,
            usage=f"sgate bench {name} MODEL [MODEL ...] [options] [-- ENGINE ARGS]",
            description=f"{text}; several models are interleaved, and compared with the first",
            epilog=OFFLINE_EPILOG.format(name=name),
        )
        offline.set_defaults(engine_arguments=[])
        offline.add_argument("models", metavar="MODEL", nargs="+", help="model folder or hub id")
        _add_engine(offline)
        _add_output(offline)
        add_flags(offline, workload, leave_out={"engine_arguments"}, group="workload")
    bench_serve.add_arguments(kinds)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", default="onnx", help="auto, onnx, torch or vllm (default: onnx)"
    )


def _add_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    return output


def run(args: argparse.Namespace) -> int:
    runs = {"compare": _run_compare, "serve": bench_serve.run}
    return runs.get(args.kind, _run_offline)(args)


def _run_offline(args: argparse.Namespace) -> int:
    from sgate_serve.bench.offline import OfflineRun, offline_lines
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines.table import choose_engine

    check_file(args.json, "--json")
    workload_class, _ = OFFLINE[args.kind]
    arguments = tuple(args.engine_arguments)
    workload = options_from(args, workload_class, engine_arguments=arguments)
    models = [Checkpoint.open(folder) for folder in args.models]
    run = OfflineRun(models, choose_engine(args.engine), workload)

    def report(*, is_interrupted: bool) -> None:
        record = run.record(is_interrupted=is_interrupted)
        print_lines(offline_lines(record))
        if args.json is not None:
            write_json(record, args.json)

    _measure(run, report)
    return 0


def _run_compare(args: argparse.Namespace) -> int:
    from sgate_serve.bench.compare import ComparisonRun
    from sgate_serve.bench.comparison import comparison_lines
    from sgate_serve.bench.explain import explain, explanation_lines
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines.table import choose_engine

    plots = load_plots(args.plot)
    check_file(args.plot, "--plot")
    check_file(args.json, "--json")
    dense, pruned = Checkpoint.open(args.dense), Checkpoint.open(args.pruned)
    folders = _folders_by_name(args.beside)
    beside = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    workload = workload_from(args, dense.spec.task)
    engine = choose_engine(args.engine)
    run = ComparisonRun(dense, pruned, engine, workload, beside)

    def report(*, is_interrupted: bool) -> None:
        result = run.result(is_interrupted=is_interrupted)
        record = result.to_json()
        # First what cannot fail: the measurement may have taken long.
        print_lines(comparison_lines(record))
        if args.json is not None:
            write_json(record, args.json)
        if plots is not None:
            plots.plot_comparison(result, args.plot)

    _measure(run, report)
    if args.explain:
        result = run.result()
        explanation = explain(dense, pruned, engine, workload, result.precisions)
        print_lines(["", *explanation_lines(explanation)])
        if args.json is not None:
            write_json(result.to_json() | {"explanation": explanation}, args.json)
    return 0


def _measure(run: Any, report: Callable[..., None]) -> None:
    """Measure, and report; if interrupted, report the whole rounds, if there are any."""
    try:
        run.measure()
    except KeyboardInterrupt:
        if run.rounds:
            report(is_interrupted=True)
        raise
    report(is_interrupted=False)


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
