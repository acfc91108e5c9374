"""`sgate inspect`: shows the content of a model folder and the widths of its layers."""

import argparse
from pathlib import Path

from sgate_serve.checkpoint.outline.outline import Outline
from sgate_serve.commands.flags import add_keep_flag
from sgate_serve.commands.output import check_file, load_plots, print_json, print_lines
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.reports.inspection import Inspection
from sgate_serve.reports.outlines import outline_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  sgate inspect my-pruned --plot widths.png"
    parser.add_argument("out", metavar="OUT", help="model folder, converted or plain, or GGUF file")
    add_keep_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the widths of each layer to this file"
    )


def run(args: argparse.Namespace) -> int:
    plots = load_plots(args.plot)
    check_file(args.plot, "--plot")
    folder = model_folder(args.out)
    try:
        inspection = Inspection.of(folder, args.keep)
    except CheckpointError as error:
        return _show_outline(_outline_of(folder, error), error, args)
    faults = Outline.of(inspection.folder.folder).faults
    if plots is not None:
        plots.plot_widths(inspection, args.plot)
    if args.json:
        print_json({**inspection.to_json(), "faults": list(faults)})
    else:
        print_lines([*inspection.lines(), *(f"fault: {fault}" for fault in faults)])
    return 0


def _outline_of(folder: str, error: CheckpointError) -> Outline:
    """Return the outline of a folder that does not load; raise the error if it says no more."""
    try:
        outline = Outline.of(folder)
    except CheckpointError:
        raise error from None
    if outline.is_supported and not outline.faults:
        raise error
    return outline


def _show_outline(outline: Outline, error: CheckpointError, args: argparse.Namespace) -> int:
    """Show what headers and config say of a folder that does not load; 1 if it has faults."""
    if args.plot is not None:
        raise error
    if args.json:
        print_json({**outline.to_json(), "error": str(error)})
    else:
        print_lines([*outline_lines(outline), f"sgate does not load it: {error}"])
    return 1 if outline.faults else 0
