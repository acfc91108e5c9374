"""The `sgate` command: parse, call one function, print, exit 0, 1 or 2.

The table below is all that `sgate --help` loads; a command's module is imported when it runs.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from sgate_serve import __version__
from sgate_serve.errors import SgateError

COMMANDS: Mapping[str, str] = {
    "train": "find what a base model does not need and recover; writes a gates folder",
    "plan": "decide what goes, and say why",
    "convert": "write the physically smaller model",
    "verify": "compare the masked dense model with the converted one",
    "eval": "score a dense, masked or converted model on held-out data",
    "inspect": "show widths, bytes, predicted speedup and certificate of a folder",
    "serve": "serve a model folder over the OpenAI API",
    "bench": "measure a pruned model against its dense parent",
    "demo": "run the whole pipeline on a small real model",
}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words and words[0] in COMMANDS else None
    if name is None:
        _top_parser().parse_args(words or ["--help"])
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("sgate_serve", "converters"):
        logging.getLogger(package).setLevel(logging.INFO)
    command = importlib.import_module(f"sgate_serve.commands.{name}")
    parser = Parser(prog=f"sgate {name}", description=COMMANDS[str(name)])
    command.add_arguments(parser)
    own, engine_words = _split_at_dashes(words[1:])
    args = parser.parse_args(own)
    if engine_words and not hasattr(args, "engine_arguments"):
        parser.error(f"nothing is expected behind `--`, found {engine_words[0]}")
    args.engine_arguments = engine_words
    try:
        status: int = command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output, `head` say, has had enough; nothing may be flushed at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SgateError as error:
        print(f"sgate {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sgate {name}: interrupted", file=sys.stderr)
        return 130
    return status


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before `--`, which are the command's, and those behind it."""
    position = words.index("--") if "--" in words else len(words)
    return words[:position], words[position + 1 :]


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    parser = Parser(
        prog="sgate",
        description="Serve structurally pruned language models.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`sgate COMMAND --help` shows its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"sgate-serve {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
