"""`sgate convert`: write the deployable folder."""

import argparse
from pathlib import Path

from converters.convert import ConvertOptions, convert
from sgate_serve.commands.flags import comma_separated, options_from
from sgate_serve.inspect import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model folder or hub id")
    parser.add_argument("--gates", type=Path, help="gates folder of any kind, or its file")
    parser.add_argument(
        "--gates-kind", help="what --gates is: sgate, finegates or peft (default: detected)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument(
        "--to",
        type=comma_separated,
        default=("hf",),
        help="hf (always written), onnx; separated by commas (default: hf)",
    )
    parser.add_argument("--precision", help="fp32, fp16 or bf16 (default: as stored)")
    parser.add_argument("--align", type=int, default=1, help="make MLP widths multiples of N")


def run(args: argparse.Namespace) -> int:
    convert(options_from(args, ConvertOptions))
    report = Inspection.of(args.out).to_json()
    found = "closed gates" if args.gates is not None else "zero rows and columns"
    print(
        f"{args.out}: {found} removed {report['removed']:.2%} of the block linears, "
        f"{report['removed_overall']:.2%} of all parameters"
    )
    return 0
