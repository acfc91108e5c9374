"""Load engines for model folders: to serve with, to verify, or to be timed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPES
from sgate_serve.engines import (
    ENGINES,
    check_reads_texts,
    choose_engine,
    import_target,
    load_encoder,
    load_engine,
    parse_encoder_options,
    parse_options,
)
from sgate_serve.engines.base import LoadedEncoder
from sgate_serve.engines.engine_options import EncoderOptions, OnnxOptions, SlotOptions
from sgate_serve.engines.scheduler import SlotEngine
from sgate_serve.engines.timed import Timed, TimedEncoder, TimedSizes, TimedSlots
from sgate_serve.errors import EngineError
from sgate_serve.loaders.graph_cache import graph_precision, onnx_folder
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision
from sgate_serve.options import flag_of
from sgate_serve.text.pooling import Pooling


def load_slot_engine(name: str, model: Checkpoint, options: SlotOptions) -> SlotEngine:
    """Load engine `name` (or "auto") for a model folder; build first what the engine reads.

    Raises EngineError for an engine that is unknown, not installed, or cannot run the model.
    """
    check_task(model)
    name = choose_engine(name)
    engine = load_engine(name, engine_folder(name, model, options), options)
    assert isinstance(engine, SlotEngine), f"engine {name} has no slots"
    return engine


def load_text_encoder(name: str, model: Checkpoint, options: EncoderOptions) -> LoadedEncoder:
    """Load engine `name` (or "auto") for a classifier or base model; build first what it reads.

    Raises EngineError for an engine that is unknown, not installed, or runs no such model.
    """
    check_reads(model)
    name = choose_engine(name)
    check_reads_texts(name)
    return load_encoder(name, engine_folder(name, model, options), options, pooling_of(model))


def pooling_of(model: Checkpoint) -> Pooling:
    """Return how a base model's states become an embedding; a classifier's states never do."""
    return Pooling.of(model.folder) if model.spec.task == BASE else Pooling()


def load_timed_encoder(
    name: str, model: Checkpoint, sizes: TimedSizes, engine_arguments: Sequence[str] = ()
) -> TimedEncoder:
    """Load engine `name` (or "auto") to be timed at reading; the caller closes it.

    Raises EngineError as `load_text_encoder` does, and for arguments that the sizes decide.
    """
    name = choose_engine(name)
    check_reads_texts(name)
    options = timed_encoder_options(name, sizes, engine_arguments)
    return TimedEncoder(load_text_encoder(name, model, options))


def load_timed(
    name: str, model: Checkpoint, sizes: TimedSizes, engine_arguments: Sequence[str] = ()
) -> Timed:
    """Load engine `name` (or "auto") to be timed; the caller closes it.

    Raises EngineError as `load_slot_engine` does, and for arguments that the sizes decide.
    """
    check_task(model)
    name = choose_engine(name)
    timed_class = ENGINES[name].timed
    if timed_class is None:
        options = timed_options(name, sizes, engine_arguments)
        return TimedSlots(load_slot_engine(name, model, options).runner)
    timed: Timed = import_target(timed_class).load(
        model.folder, sizes.batch, sizes.model_len, sizes.threads, engine_arguments
    )
    return timed


# Options of slot engines that a measurement leaves no room for → why.
DECIDED: Mapping[str, str] = MappingProxyType(
    {
        "slots": "the largest of --batches decides it",
        "max_model_len": "--context-tokens, --decode-steps and --prefill-tokens decide it",
        "prefill_chunk": "a timed prompt is fed in one call",
    }
)
DECIDED_OF_ENCODERS: Mapping[str, str] = MappingProxyType(
    {
        "max_model_len": "--prefill-tokens decides it",
        "batch_tokens": "--batches and --prefill-tokens decide it",
    }
)


def timed_options(name: str, sizes: TimedSizes, arguments: Sequence[str]) -> SlotOptions:
    """Return a slot engine's options for the sizes; raise EngineError for one given besides."""
    given = parse_options(name, arguments)
    _check_undecided(name, given, DECIDED)
    return replace(
        given,
        slots=sizes.batch,
        max_model_len=sizes.model_len,
        threads=_threads(name, given.threads, sizes),
    )


def timed_encoder_options(name: str, sizes: TimedSizes, arguments: Sequence[str]) -> EncoderOptions:
    """Return an encoder's options for the sizes; raise EngineError for one given besides."""
    given = parse_encoder_options(name, arguments)
    _check_undecided(name, given, DECIDED_OF_ENCODERS)
    return replace(
        given, max_model_len=sizes.model_len, threads=_threads(name, given.threads, sizes)
    )


def _check_undecided(
    name: str, given: SlotOptions | EncoderOptions, decided: Mapping[str, str]
) -> None:
    for option, reason in decided.items():
        if getattr(given, option) is not None:
            raise EngineError(f"engine {name}: {flag_of(option)} has no place here: {reason}")


def _threads(name: str, given: int | None, sizes: TimedSizes) -> int | None:
    """Return the threads that are given before `--` or behind it; raise EngineError for both."""
    if given is not None and sizes.threads is not None:
        raise EngineError(
            f"engine {name}: --threads is given before `--` ({sizes.threads}) and behind it "
            f"({given}); give it once"
        )
    return given if sizes.threads is None else sizes.threads


def engine_folder(name: str, model: Checkpoint, options: SlotOptions | EncoderOptions) -> Path:
    """Return the folder that engine `name` reads, its graph built first where there is none."""
    if ENGINES[name].reads == "onnx":
        own = options if isinstance(options, EncoderOptions) else OnnxOptions.of(options)
        return onnx_folder(model, own.precision)
    return model.folder


def check_task(model: Checkpoint) -> None:
    """Raise EngineError unless a model generates text."""
    if model.spec.task != CAUSAL_LM:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, which generates no text; give a "
            "causal language model"
        )


def check_reads(model: Checkpoint) -> None:
    """Raise EngineError for a model that generates text instead of classifying or embedding it."""
    if model.spec.task == CAUSAL_LM:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, which generates text; give a "
            "classifier or a base model"
        )


def executed_precision(
    name: str, model: Checkpoint, engine_arguments: Sequence[str] = ()
) -> Precision:
    """Return what engine `name` holds a model's matrices in, told the words behind `--`."""
    if ENGINES[name].reads == "onnx":
        if model.spec.task != CAUSAL_LM:
            wanted = parse_encoder_options(name, engine_arguments).precision
        else:
            wanted = OnnxOptions.of(parse_options(name, engine_arguments)).precision
        return graph_precision(model, wanted)
    return PRECISIONS[FP32] if ENGINES[name].timed is None else stored_precision(model)


def stored_precision(model: Checkpoint) -> Precision:
    """Return what a model folder stores its matrices in: int8 is of the blocks alone."""
    info = model.tensors[f"{model.spec.family.embedding}.weight"]
    bits = 8 * DTYPES[info.dtype].itemsize
    return Precision(INT8 if model.is_int8 else info.dtype, 8 if model.is_int8 else bits, bits)
