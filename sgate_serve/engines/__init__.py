"""Engines by name, loaded lazily: one table row and one adapter file each.

An engine's options are the fields of its options dataclass, spelt `--max-model-len 2048` on a
command line. An option that an engine does not have is refused.
"""

import argparse
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from sgate_serve.engines.scheduler import SlotEngine, SlotOptions
from sgate_serve.environment import missing_packages
from sgate_serve.errors import EngineError
from sgate_serve.options import flag_of

logger = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class EngineRow:
    """One engine: its class, the folder that it loads, and what must be installed for it.

    `reads` is "onnx" for the folder of the ONNX graph, "model" for the model folder itself. `timed`
    is for an engine that is not driven by slots: a class whose classmethod `load(folder, batch,
    model_len, threads, arguments)` returns a `Timed` (engines/timed.py), threads being an int or
    None and arguments a sequence of words.
    """

    target: str
    reads: Literal["onnx", "model"]
    when: str
    modules: tuple[str, ...]
    install: str
    timed: str | None = None


ENGINES: Mapping[str, EngineRow] = MappingProxyType(
    {
        "onnx": EngineRow(
            target="sgate_serve.engines.onnx:OnnxEngine",
            reads="onnx",
            when="CPU; needs neither torch nor transformers",
            modules=("onnxruntime",),
            install="pip install sgate-serve",
        ),
        "torch": EngineRow(
            target="sgate_serve.engines.torch:TorchEngine",
            reads="model",
            when="transformers reference in fp32; the oracle, not for speed",
            modules=("torch", "transformers"),
            install='pip install "sgate-serve[train]"',
        ),
    }
)
# In the command line's contract, with no adapter in this release.
PLANNED = frozenset({"vllm"})


def load_engine(name: str, folder: Path, options: SlotOptions | None = None) -> SlotEngine:
    """Load an engine from the folder that its row `reads`.

    Raises EngineError for an engine that is unknown, planned or not installed, for sizes that do
    not fit, or for a folder that lacks what the engine reads. "auto" is `choose_engine`'s.
    """
    check_engine(name)
    engine: SlotEngine = import_target(ENGINES[name].target).load(folder, options or SlotOptions())
    return engine


def import_target(target: str) -> Any:
    """Return what a row's "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose_engine(name: str) -> str:
    """Return `name` checked, or for "auto" the first installed engine of the table, logged."""
    if name != AUTO:
        check_engine(name)
        return name
    chosen = next((key for key, row in ENGINES.items() if not missing_modules(row)), None)
    if chosen is None:
        raise EngineError(f"no engine is installed; run: {ENGINES['onnx'].install}")
    logger.info("engine auto: %s (%s)", chosen, ENGINES[chosen].when)
    return chosen


def check_engine(name: str) -> None:
    """Raise EngineError unless `name` is in the table and what it needs is installed."""
    known = ", ".join(ENGINES)
    if name in PLANNED:
        raise EngineError(f"engine {name} is not in this release yet; use one of: {known}")
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; use one of: {known}")
    missing = missing_modules(ENGINES[name])
    if missing:
        raise EngineError(
            f"engine {name} needs {' and '.join(missing)}, not installed here; "
            f"run: {ENGINES[name].install}"
        )


def missing_modules(row: EngineRow) -> list[str]:
    return missing_packages(row.modules)


def parse_options(name: str, arguments: Sequence[str]) -> SlotOptions:
    """Read `--slots N` and the like for engine `name`; raise EngineError for anything else."""
    parser = _Parser(prog=f"engine {name}", add_help=False, allow_abbrev=False)
    for option in fields(SlotOptions):
        parser.add_argument(flag_of(option.name), dest=option.name, type=int)
    return SlotOptions(**vars(parser.parse_args(arguments)))


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        known = ", ".join(flag_of(option.name) for option in fields(SlotOptions))
        raise EngineError(f"{self.prog}: {message}; its options: {known}, each with a number")
