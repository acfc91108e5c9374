"""`sgate bench throughput` and `sgate bench latency`."""

import argparse
from collections.abc import Mapping
from typing import Any

from sgate_serve.bench.offline_workload import (
    LatencyWorkload,
    OfflineWorkload,
    ThroughputWorkload,
)
from sgate_serve.commands.bench_output import (
    add_engine,
    add_output,
    check_output,
    measure,
    write_output,
)
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_lines

EPILOG = """\
ENGINE ARGS, after `--`: those of `sgate serve` that the options above do not set

examples:
  sgate bench {name} my-model
  sgate bench {name} my-model my-pruned --json speed.json -- --precision int8
"""
# The workload and the description of each kind.
KINDS: Mapping[str, tuple[type[OfflineWorkload], str]] = {
    "throughput": (ThroughputWorkload, "requests and tokens per second of a full queue"),
    "latency": (LatencyWorkload, "seconds that a batch of requests takes"),
}


def add_arguments(kinds: Any) -> None:
    """Add both kinds to those of `sgate bench`."""
    for name, (workload, text) in KINDS.items():
        parser = kinds.add_parser(
            name,
            help=text,
            usage=f"sgate bench {name} MODEL [MODEL ...] [options] [-- ENGINE ARGS]",
            description=f"{text}; several models are interleaved, and compared with the first",
            epilog=EPILOG.format(name=name),
        )
        parser.set_defaults(engine_arguments=[])
        parser.add_argument("models", metavar="MODEL", nargs="+", help="model folder or hub id")
        add_engine(parser)
        add_output(parser)
        add_flags(parser, workload, leave_out={"engine_arguments"}, group="workload")


def run(args: argparse.Namespace) -> int:
    from sgate_serve.bench.offline import OfflineRun, offline_lines
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.engines.table import choose_engine

    check_output(args, *args.models)
    workload_class, _ = KINDS[args.kind]
    arguments = tuple(args.engine_arguments)
    workload = options_from(args, workload_class, engine_arguments=arguments)
    models = [Checkpoint.open(folder) for folder in args.models]
    chosen = choose_engine(args.engine, models[0].spec.for_torch_alone)
    own = OfflineRun(models, chosen, workload)

    def report(*, is_interrupted: bool) -> None:
        record = own.record(is_interrupted=is_interrupted)
        print_lines(offline_lines(record))
        write_output(args, record)

    measure(own, report)
    return 0
