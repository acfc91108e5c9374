"""The times of a model's blocks on this machine, measured once and then taken from the cache."""

from contextlib import suppress
from pathlib import Path

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.block_times import measure_block_times
from sgate_serve.checkpoint.cached_json import cached_file, read_cached, write_cached
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import ONNX, check_engine
from sgate_serve.environment import cpu_flags, hardware, library_versions
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.precision import (
    FP32,
    PRECISIONS,
    Precision,
    precision_named,
    suited_to,
)
from sgate_serve.plan.block_times import BlockTimes
from sgate_serve.progress import activity, age_of

TIMES_DIR = "block-times"
TORCH = "torch"


def known_block_times(model: Checkpoint, engine: str, precision: str) -> BlockTimes:
    """Return the times of a model's blocks, which hold for every model of its shape.

    Raises EngineError for an engine or precision that cannot be timed here, or uneven layers.
    """
    wanted = precision_on(engine, precision, is_encoder=model.spec.is_encoder)
    if not model.spec.has_uniform_layers:
        raise EngineError(
            f"{model.folder}: its layers differ in width, so there is no table of their times; "
            "give the dense model, or a --target of weights"
        )
    file = times_file(model.spec, engine, wanted)
    known = _read(file)
    if known is not None and known.fits(model.spec):
        with activity(f"block times, as measured {age_of(known.measured_at)} on {known.machine}"):
            return known
    times = measure_block_times(model, engine, wanted)
    write_cached(file, times.to_json())
    return times


def precision_on(engine: str, name: str, *, is_encoder: bool) -> Precision:
    """Return the precision of a model to time; raise EngineError if the engine lacks it."""
    check_engine(engine)
    if engine == ONNX:
        return suited_to(precision_named(name, is_encoder=is_encoder), cpu_flags())
    if engine != TORCH:
        raise EngineError(f"engine {engine}: blocks are timed on {ONNX} and {TORCH} only")
    if name != FP32:
        raise EngineError(f"engine {engine} computes in {FP32}; {name} is for {ONNX}")
    return PRECISIONS[FP32]


def times_file(spec: ModelSpec, engine: str, precision: Precision) -> Path:
    """Return where the cache keeps the times of a shape on this machine."""
    machine, layer = hardware(), spec.layers[0]
    key = {
        "machine": {name: machine[name] for name in ("cpu", "cpu_flags", "cpus", "gpus")},
        "engine": engine,
        "precision": vars(precision),
        "shape": {
            "family": spec.family.name,
            "task": spec.task,
            "heads": [layer.num_heads, layer.num_kv_heads],
            "tensors": spec.tensor_shapes(),
            "windows": spec.windows,
            "activation": spec.activation,
        },
        "versions": library_versions(),
    }
    return cached_file(TIMES_DIR, key)


def _read(file: Path) -> BlockTimes | None:
    """Return the times in a file of the cache, or None if it is missing or damaged."""
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        return BlockTimes.from_json(read_cached(file))
    return None
