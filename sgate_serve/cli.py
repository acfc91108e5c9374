"""The `sgate` command: parses, runs one command, and exits with status 0, 1 or 2.

`sgate --help` needs only the table below; the module of a command is imported when it runs.
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
    "train": "find what to prune in a model and recover its quality; writes a gates folder",
    "plan": "show what would be removed, and why",
    "convert": "write the physically smaller model",
    "verify": "compare the masked dense model with the converted one",
    "eval": "measure the quality of a dense, masked or converted model on held-out data",
    "inspect": "show the widths, size, predicted speedup and certificate of a model folder",
    "serve": "serve a model folder with an OpenAI-compatible API",
    "bench": "compare the speed of a pruned model with that of its dense parent",
    "demo": "run the whole pipeline on a small real model",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line on stderr, with exit status 2."""

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
        parser.error(f"nothing is expected after `--`, found {engine_words[0]}")
    args.engine_arguments = engine_words
    try:
        status: int = command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it; prevent a flush at exit.
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
    """Return the words before `--`, which are the command's, and those after it."""
    position = words.index("--") if "--" in words else len(words)
    return words[:position], words[position + 1 :]


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    parser = Parser(
        prog="sgate",
        description="Prune language models with gates, prove the result, and serve it.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nFor its options: sgate COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"sgate-serve {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
