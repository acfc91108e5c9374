"""`sgate inspect`: shows the content of a model folder and the widths of its layers."""

import argparse
from pathlib import Path

from sgate_serve.commands.output import check_file, load_plots, print_json, print_lines
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.reports.inspection import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  sgate inspect my-pruned --plot widths.png"
    parser.add_argument("out", metavar="OUT", help="model folder, converted or plain, or GGUF file")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the widths of each layer to this file"
    )


def run(args: argparse.Namespace) -> int:
    plots = load_plots(args.plot)
    check_file(args.plot, "--plot")
    inspection = Inspection.of(model_folder(args.out))
    if plots is not None:
        plots.plot_widths(inspection, args.plot)
    if args.json:
        print_json(inspection.to_json())
    else:
        print_lines(inspection.lines())
    return 0
