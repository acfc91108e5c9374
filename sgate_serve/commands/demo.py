"""`sgate demo`: runs the whole pipeline on a small real model."""

import argparse
import os

from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.demo.sizes import DemoOptions
from sgate_serve.environment import missing_packages
from sgate_serve.errors import SgateError

NEEDED = ("torch", "transformers", "peft", "openai")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, DemoOptions)


def run(args: argparse.Namespace) -> int:
    missing = missing_packages(NEEDED)
    if missing:
        raise SgateError(f'demo needs {", ".join(missing)}: pip install "sgate-serve[demo]"')
    from sgate_serve.demo.walkthrough import demo

    options = options_from(args, DemoOptions)
    # Cache the graphs of the dense models in the demo's folder, not in the user's cache.
    os.environ.setdefault("SGATE_CACHE", str(options.dir / "cache"))
    demo(options)
    return 0
