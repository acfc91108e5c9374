"""`sgate verify`: compares masked and converted model; exits with status 1 if they differ."""

import argparse

from sgate_serve.checkpoint.location import find_folder
from sgate_serve.checkpoint.writer import check_writable
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import check_file, print_json, print_lines
from sgate_serve.environment import check_installed
from sgate_serve.errors import EngineError, writing
from sgate_serve.loaders.gguf_folder import model_folder
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.progress import activity
from sgate_serve.verify.certificate import CERTIFICATE_FILE, certificate_line, good_certificate
from sgate_serve.verify.verify_options import VerifyOptions

EXAMPLES = """\
examples:
  sgate verify my-model --gates my-gates my-pruned
  sgate verify my-model --gates my-gates my-pruned --engine onnx --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sgate verify CHECKPOINT [--gates GATES] OUT [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="base model folder, hub id or GGUF file"
    )
    parser.add_argument("out", metavar="OUT", help="converted model folder")
    add_flags(parser, VerifyOptions, leave_out=("checkpoint", "out"))
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    check_installed("verify needs", ("torch", "transformers"), "train", EngineError)
    args.checkpoint = model_folder(args.checkpoint)
    options = options_from(args, VerifyOptions)
    options.check()
    folder = find_folder(args.out)
    if options.keep is not None:
        folder = open_size(folder, options.keep).folder
    # A base that is compared with itself is no conversion, and nothing is written into it.
    is_base = find_folder(args.checkpoint).samefile(folder)
    if not is_base:
        check_file(folder / CERTIFICATE_FILE)
        check_writable(folder)
    with activity("loading torch and transformers", is_brief=True):
        from sgate_serve.verify.verification import verify

    result = verify(options)
    kept = None if result.passed else good_certificate(folder, result.base_fingerprint)
    if not is_base and kept is None:
        with writing(folder):
            result.write(folder)
    if args.json:
        print_json(result.to_json())
    else:
        print_lines(result.lines())
        if kept is not None:
            print(f"{folder / CERTIFICATE_FILE} stays: {certificate_line(kept)}")
    return 0 if result.passed else 1
