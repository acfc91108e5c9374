"""`sgate bench`: compares models in one run, measures requests without a server, or loads one."""

import argparse

from sgate_serve.commands import bench_compare, bench_offline, bench_serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", title="kinds")
    for module in (bench_compare, bench_offline, bench_serve):
        module.add_arguments(kinds)


def run(args: argparse.Namespace) -> int:
    runs = {"compare": bench_compare.run, "serve": bench_serve.run}
    return runs.get(args.kind, bench_offline.run)(args)
