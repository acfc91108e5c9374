"""`sgate demo`: runs the whole pipeline on a small real model."""

import argparse
import os

from sgate_serve.checkpoint.writer import check_writable
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.commands.output import how_to_continue
from sgate_serve.demo.sizes import DemoOptions
from sgate_serve.environment import check_installed
from sgate_serve.errors import OutputError

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
    parser.epilog = (
        "examples:\n  sgate demo --quick --dir my-demo\n  sgate demo --real --dir my-real"
    )
    add_flags(parser, DemoOptions)


def run(args: argparse.Namespace) -> int:
    check_installed("demo needs", NEEDED, "demo")
    from sgate_serve.demo.walkthrough import demo

    options = options_from(args, DemoOptions)
    # Cache the graphs of the dense models in the demo's folder, not in the user's cache.
    os.environ.setdefault("SGATE_CACHE", str(options.dir / "cache"))
    if options.dir.exists() and not options.dir.is_dir():
        raise OutputError(f"--dir {options.dir} is a file; give a folder")
    check_writable(options.dir)
    hint = f"repeat the command to continue in {options.dir}"
    with how_to_continue(lambda: hint):
        if options.real:
            check_installed("demo --real needs", (*NEEDED, "gguf"), "real")
            from sgate_serve.demo.real import real_demo

            real_demo(options.dir)
        else:
            demo(options)
    return 0
