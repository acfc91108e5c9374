"""Load a model folder on an engine that serves requests, building first what the engine reads."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.drafter import Drafter
from sgate_serve.engines.engine_options import CPU, OnnxOptions, PoolingOptions, SlotOptions
from sgate_serve.engines.model_protocols import LoadedPoolingEngine
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.table import (
    ENGINES,
    check_can_pool,
    choose_engine,
    import_object,
    load_engine,
)
from sgate_serve.errors import EngineError
from sgate_serve.loaders.draft import (
    check_can_draft,
    draft_options,
    num_drafted,
    open_draft,
)
from sgate_serve.loaders.graph_cache import onnx_folder
from sgate_serve.onnx_format.auto_precision import AUTO, chosen_precision
from sgate_serve.text.pooling import Pooling

Options = TypeVar("Options", bound=SlotOptions | PoolingOptions)


def load_slot_engine(name: str, model: Checkpoint, options: SlotOptions) -> SlotEngine:
    """Load a causal language model on engine `name` (or "auto"), and what drafts for it, if any.

    Raises EngineError for an engine that is unknown, not installed, or cannot run the model.
    """
    check_generative(model)
    name = choose_engine(name, model.spec.for_torch_alone)
    draft = None if options.draft is None else open_draft(model, options)
    engine = _load_slots(name, model, options.without_draft())
    if draft is not None:
        check_can_draft(engine, model)
        own = _load_slots(name, draft, draft_options(draft, engine, options))
        check_can_draft(own, draft)
        engine.draft_with(Drafter(own.runner, num_drafted(options), engine.prefill_chunk))
    return engine


def _load_slots(name: str, model: Checkpoint, options: SlotOptions) -> SlotEngine:
    options = with_chosen_precision(options, model)
    engine = load_engine(name, engine_folder(name, model, options), options)
    assert isinstance(engine, SlotEngine), f"engine {name} has no slots"
    return engine


def load_pooling_engine(
    name: str, model: Checkpoint, options: PoolingOptions
) -> LoadedPoolingEngine:
    """Load a classifier or base model on engine `name` (or "auto").

    Raises EngineError for an engine that is unknown, not installed, or cannot run the model.
    """
    check_pooling_model(model)
    name = choose_engine(name)
    check_can_pool(name)
    options = with_chosen_precision(options, model)
    engine_class = import_object(f"{ENGINES[name].pooling}")
    engine: LoadedPoolingEngine = engine_class.load(
        engine_folder(name, model, options), options, pooling_of(model)
    )
    return engine


def pooling_of(model: Checkpoint) -> Pooling:
    """Return how a base model's states become an embedding; the default for a classifier."""
    return Pooling.of(model.folder) if model.spec.task == BASE else Pooling()


def with_chosen_precision(options: Options, model: Checkpoint) -> Options:
    """Return options for a model in which `--precision auto` has become int4 or int8."""
    if isinstance(options, OnnxOptions | PoolingOptions) and options.precision == AUTO:
        chosen = chosen_precision(model.spec, is_int8=model.is_int8)
        return replace(options, precision=chosen)
    return options


def engine_folder(name: str, model: Checkpoint, options: SlotOptions | PoolingOptions) -> Path:
    """Return the folder that engine `name` reads; a missing graph is built first."""
    if ENGINES[name].reads == "onnx":
        if isinstance(options, PoolingOptions):
            return onnx_folder(model, options.precision)
        own = OnnxOptions.of(options)
        return onnx_folder(
            model,
            own.precision,
            int8_cache=own.kv_cache_dtype == INT8,
            is_for_cpu=own.device == CPU,
        )
    return model.folder


def check_generative(model: Checkpoint) -> None:
    """Raise EngineError unless the model generates text."""
    if model.spec.task != CAUSAL_LM:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, which does not generate text; "
            "give a causal language model"
        )


def check_pooling_model(model: Checkpoint) -> None:
    """Raise EngineError if the model generates text instead of classifying or embedding it."""
    if model.spec.task == CAUSAL_LM:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, which generates text; give a "
            "classifier or a base model"
        )
