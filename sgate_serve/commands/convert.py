"""`sgate convert`: writes the deployable model folder."""

import argparse
from pathlib import Path

from converters.convert import ConvertOptions, convert
from sgate_serve.commands.flags import (
    add_gates_flags,
    add_target_flags,
    comma_separated,
    options_from,
    target_from,
)
from sgate_serve.reports.inspection import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model folder or hub id")
    add_gates_flags(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--to",
        type=comma_separated,
        default=("hf",),
        help="formats, separated by commas: hf (always written), onnx (default: hf)",
    )
    parser.add_argument(
        "--precision",
        help="fp32, fp16, bf16, int8, or int4 (ONNX graph only) (default: as stored)",
    )
    add_target_flags(parser)


def run(args: argparse.Namespace) -> int:
    convert(options_from(args, ConvertOptions, target=target_from(args)))
    report = Inspection.of(args.out).to_json()
    found = "closed gates" if args.gates is not None else "zero rows and columns"
    print(
        f"{args.out}: {found} removed {report['removed']:.2%} of the block linears, "
        f"{report['removed_overall']:.2%} of all parameters"
    )
    if report["onnx"] is not None:
        print(f"HF layout in {report['precision']}, ONNX graph in {report['onnx']['precision']}")
    return 0
