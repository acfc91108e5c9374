"""`sgate verify`: compares masked and converted model; exits with status 1 if they differ."""

import argparse

from sgate_serve.checkpoint.location import find_folder
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import print_json, print_lines
from sgate_serve.environment import missing_packages
from sgate_serve.errors import EngineError
from sgate_serve.verify.certificate import VerifyOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="base model folder or hub id")
    parser.add_argument("out", help="converted model folder")
    add_flags(parser, VerifyOptions, leave_out=("checkpoint", "out"))
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    if missing_packages(("torch", "transformers")):
        raise EngineError(
            'verify needs the torch reference: pip install "sgate-serve[train]" and run it again'
        )
    from sgate_serve.verify.verification import verify

    result = verify(options_from(args, VerifyOptions))
    result.write(find_folder(args.out))
    if args.json:
        print_json(result.to_json())
    else:
        print_lines(result.lines())
    return 0 if result.passed else 1
