"""`sgate convert`: writes the deployable model folder."""

import argparse
from pathlib import Path

from converters.convert import ConvertOptions, convert
from converters.to_gguf import GGUF_FILE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.advice import next_step
from sgate_serve.commands.flags import (
    add_gates_flags,
    add_target_flags,
    comma_separated,
    fractions,
    options_from,
    target_from,
)
from sgate_serve.commands.output import check_new_folder, print_lines
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.targets import grouped_advice
from sgate_serve.reports.inspection import Inspection, size_line

EXAMPLES = """\
examples:
  sgate convert my-model --gates my-gates --out my-pruned
  sgate convert my-model --gates my-gates --to hf,onnx --precision int8 --out my-pruned
  sgate convert my-model --gates my-gates --to gguf --precision int4 --out my-pruned
  sgate convert my-model --gates my-gates --sizes 0.6,0.5 --out my-pruned
  sgate convert my-zeroed-model --out my-pruned    # what is zero goes

afterwards:
  sgate verify my-model --gates my-gates my-pruned
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate convert CHECKPOINT --out DIR [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="model folder, hub id or GGUF file"
    )
    add_gates_flags(parser)
    add_target_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty"
    )
    output.add_argument(
        "--to",
        type=comma_separated,
        default=("hf",),
        metavar="FORMATS",
        help="formats, separated by commas: hf (always written), onnx, gguf (default: hf)",
    )
    output.add_argument(
        "--sizes",
        type=fractions,
        default=(),
        metavar="FRACTIONS",
        help="smaller sizes that OUT can be loaded at by --keep: fractions of the block weights "
        "that they keep, separated by commas",
    )
    output.add_argument(
        "--precision",
        help="fp32, fp16, bf16, int8, int4 (ONNX graph and GGUF only), or auto: int4 or int8 by "
        "this machine, with an ONNX graph (default: as stored; fp16 in GGUF)",
    )


def run(args: argparse.Namespace) -> int:
    check_new_folder(args.out)
    args.checkpoint = model_folder(args.checkpoint)
    plan = convert(options_from(args, ConvertOptions, target=target_from(args)))
    report = Inspection.of(args.out).to_json()
    found = "closed gates" if args.gates is not None else "zero rows and columns"
    print(
        f"{args.out}: {found} removed {report['removed']:.2%} of the block linears, "
        f"{report['removed_overall']:.2%} of all parameters"
    )
    hint = next_step(Checkpoint.open(args.checkpoint), args.gates, Figures(**report["figures"]))
    print_lines(line for line in (hint, grouped_advice(plan)) if line is not None)
    if report["onnx"] is not None:
        rows = ", in rows as this CPU has VNNI" if "in_rows" in report["onnx"] else ""
        graph = f"ONNX graph in {report['onnx']['precision']}{rows}"
        print(f"HF layout in {report['precision']}, {graph}")
    print_lines(map(size_line, report["sizes"]))
    if report["gguf"] is not None:
        print(f"for llama.cpp: {args.out / GGUF_FILE}, {report['gguf']['bytes']:,} bytes")
    return 0
