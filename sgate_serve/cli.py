"""The `sgate` command: parses, runs one command, and exits with status 0, 1, 2 or 130.

`sgate --help` needs only the table below; the module of a command is imported when it runs.
"""

import argparse
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sgate_serve import __version__
from sgate_serve.environment import ENGINE_THREAD
from sgate_serve.errors import SgateError, SystemFailure, did_you_mean

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
SHELLS = ("bash", "zsh")
BAD_INPUT, INTERRUPTED = 2, 128 + signal.SIGINT
# Such as -5 or -.5, which argparse takes for a value.
NEGATIVE_NUMBER = re.compile(r"-(\d|\.\d)")
# The commands whose engine is timed or serves, and decides by itself how its threads wait.
WITH_ENGINE = ("serve", "bench")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake in one line on stderr, with exit status 2.

    A misspelt flag or word is answered with the one that was meant. Examples in the epilog keep
    their lines.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see `{self.prog} --help`)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, but first refuse unknown flags: argparse would name what they leave missing."""
        known = {flag for action in _actions(self) for flag in action.option_strings}
        for word in args or ():
            flag = word.partition("=")[0]
            is_flag = flag.startswith("-") and flag.strip("-") and not NEGATIVE_NUMBER.match(flag)
            if is_flag and not any(each.startswith(flag) for each in known):
                wanted = f"--{flag.lstrip('-')}"
                takes_more = "engine_arguments" in self._defaults
                more = "; options of the engine follow `--`" if takes_more else ""
                self.error(f"unknown option {flag}{did_you_mean(wanted, known)}{more}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r} (choose from {', '.join(known)}){hint}"
            )


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)


class OnceFilter(logging.Filter):
    """Drops a line that was logged before: a command may open or load a model several times."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        is_new = line not in self._seen
        self._seen.add(line)
        return is_new


def script() -> NoReturn:
    """Run `main` as the whole process.

    An engine that still loads or steps is left in its native call. At exit, Python would end its
    thread as soon as the call returns, and C++ aborts a process whose threads are ended like that.
    """
    status = main()
    if any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name not in COMMANDS:
        # A misspelt command is to be named before flags that only the right one knows.
        parser = _top_parser()
        parser.parse_args([name] if not name.startswith("-") else words or [name])
        parser.error(f"give the command first, not {name}")
    try:
        _start_output()
        _wait_passively(name)
        status = _run(name, words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it; prevent a flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        _report(name, "interrupted", error)
        return INTERRUPTED
    except Exception as error:
        line = _explained(error)
        if line is None:
            raise
        _report(name, line, error)
        return BAD_INPUT
    return status


def _start_output() -> None:
    """Log our packages to stderr, and escape what the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(OnceFilter())
        logging.basicConfig(format="%(message)s", handlers=[handler])
    for package in ("sgate_serve", "converters"):
        logging.getLogger(package).setLevel(logging.INFO)


def _wait_passively(name: str) -> None:
    """Let torch's threads sleep while they wait for each other, unless the user says otherwise.

    While another program uses one of two cores, threads that spin made a training step take 7 times
    as long as threads that sleep; on an idle machine sleeping costs about 5%.
    """
    if name not in WITH_ENGINE:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _run(name: str, words: list[str]) -> int:
    command = importlib.import_module(f"sgate_serve.commands.{name}")
    parser = Parser(prog=f"sgate {name}", description=COMMANDS[name])
    command.add_arguments(parser)
    own, engine_words = _split_at_dashes(words)
    args = parser.parse_args(own)
    if engine_words and not hasattr(args, "engine_arguments"):
        parser.error(f"nothing is expected after `--`, found {engine_words[0]}")
    args.engine_arguments, args.words = engine_words, [name, *words]
    status: int = command.run(args)
    return status


def _explained(error: Exception) -> str | None:
    """Return a user's error or a failure of the system in one line; None for a bug."""
    if isinstance(error, SgateError):
        return " ".join(str(error).split())
    failure = SystemFailure.of(error)
    if failure is not None:
        return failure.line()
    if isinstance(error, MemoryError):
        return f"out of memory{_in_brackets(error)}; close other programs, or use a smaller model"
    if isinstance(error, ModuleNotFoundError):
        from sgate_serve.environment import missing_package_line

        return missing_package_line(error.name or "")
    return None


def _in_brackets(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f" ({text})" if text else ""


def _report(name: str, line: str, error: BaseException) -> None:
    """Print one line on stderr: what happened, and the notes on how to continue."""
    _close_bars()
    print("; ".join([f"sgate {name}: {line}", *getattr(error, "__notes__", ())]), file=sys.stderr)


def _close_bars() -> None:
    """End the lines of progress bars, which would be drawn again over the last line otherwise."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        bar.close()


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before `--`, which are the command's, and those after it."""
    position = words.index("--") if "--" in words else len(words)
    return words[:position], words[position + 1 :]


def _top_parser() -> Parser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    parser = Parser(
        prog="sgate",
        description="Prune language models with gates, prove the result, and serve it.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nFor its options: sgate COMMAND --help",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    _add_own_flags(parser)
    return parser


def _add_own_flags(parser: Parser) -> None:
    parser.add_argument("--version", action="version", version=f"sgate-serve {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        help="print a script that completes commands and options in this shell",
    )


class PrintCompletion(argparse.Action):
    """Prints the completion script of a shell, and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            import shtab
        except ModuleNotFoundError as error:
            parser.error(f"--print-completion: {_explained(error)}")
        whole = _whole_parser()
        for action in _actions(whole):
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif not action.option_strings and not action.choices:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        print(shtab.complete(whole, values))
        parser.exit()


def _whole_parser() -> Parser:
    """Return a parser of all commands, which imports the modules of all of them."""
    parser = Parser(prog="sgate")
    _add_own_flags(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = commands.add_parser(name, help=text, prog=f"sgate {name}")
        importlib.import_module(f"sgate_serve.commands.{name}").add_arguments(own)
    return parser


if __name__ == "__main__":
    script()
