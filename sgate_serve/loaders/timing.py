"""Load a model folder on an engine in order to time it, with sizes that the workload dictates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import PoolingOptions, SlotOptions
from sgate_serve.engines.table import (
    ENGINES,
    check_can_pool,
    choose_engine,
    import_object,
    parse_options,
    parse_pooling_options,
)
from sgate_serve.engines.timed import (
    TimedDecoder,
    TimedPoolingEngine,
    TimedSizes,
    TimedSlotEngine,
)
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import check_generative, load_pooling_engine, load_slot_engine
from sgate_serve.onnx_format.names import ONNX_DIR
from sgate_serve.onnx_format.precision import Precision
from sgate_serve.options import flag_of

# Options of slot engines that a workload dictates → the flags that do so, or the reason.
DICTATED: Mapping[str, str] = MappingProxyType(
    {
        "slots": "the largest of --batches, or --batch-size or --max-num-seqs, decides it",
        "max_model_len": "the lengths of the workload decide it",
        "prefill_chunk": "a timed prompt is processed in one call",
    }
)
DICTATED_FOR_POOLING: Mapping[str, str] = MappingProxyType(
    {
        "max_model_len": "--prefill-tokens decides it",
        "batch_tokens": "--batches and --prefill-tokens decide it",
    }
)


def load_timed(
    name: str, model: Checkpoint, sizes: TimedSizes, engine_arguments: Sequence[str] = ()
) -> TimedDecoder:
    """Load a causal language model on engine `name` (or "auto") to be timed; the caller closes it.

    Raises EngineError as `load_slot_engine` does, and for arguments that the sizes dictate.
    """
    check_generative(model)
    name = choose_engine(name, model.spec.for_torch_alone)
    timed_class = ENGINES[name].timed
    if timed_class is None:
        options = timed_options(name, sizes, engine_arguments)
        return TimedSlotEngine(load_slot_engine(name, model, options))
    timed: TimedDecoder = import_object(timed_class).load(
        model.folder, sizes.batch, sizes.model_len, sizes.threads, engine_arguments
    )
    return timed


def load_timed_pooling(
    name: str, model: Checkpoint, sizes: TimedSizes, engine_arguments: Sequence[str] = ()
) -> TimedPoolingEngine:
    """Load a classifier or base model on engine `name` (or "auto") to be timed.

    The caller closes it. Raises EngineError as `load_pooling_engine` does, and for arguments that
    the sizes dictate.
    """
    name = choose_engine(name)
    check_can_pool(name)
    options = timed_pooling_options(name, sizes, engine_arguments)
    return TimedPoolingEngine(load_pooling_engine(name, model, options))


def given_options(
    name: str, arguments: Sequence[str], *, is_pooling: bool
) -> SlotOptions | PoolingOptions | None:
    """Return the options among a timed model's words; None for an engine with words of its own."""
    if ENGINES[name].timed is not None:
        return None
    return (parse_pooling_options if is_pooling else parse_options)(name, arguments)


def timed_options(name: str, sizes: TimedSizes, arguments: Sequence[str]) -> SlotOptions:
    """Return a slot engine's options for the sizes; raise EngineError for dictated ones."""
    given = parse_options(name, arguments)
    _check_free(name, given, DICTATED)
    return replace(
        given,
        slots=sizes.batch,
        max_model_len=sizes.model_len,
        threads=_threads(name, given.threads, sizes),
    )


def timed_pooling_options(name: str, sizes: TimedSizes, arguments: Sequence[str]) -> PoolingOptions:
    """Return a pooling engine's options for the sizes; raise EngineError for dictated ones."""
    given = parse_pooling_options(name, arguments)
    _check_free(name, given, DICTATED_FOR_POOLING)
    return replace(
        given, max_model_len=sizes.model_len, threads=_threads(name, given.threads, sizes)
    )


def _check_free(
    name: str, given: SlotOptions | PoolingOptions, dictated: Mapping[str, str]
) -> None:
    for option, reason in dictated.items():
        if getattr(given, option) is not None:
            raise EngineError(f"engine {name}: {flag_of(option)} cannot be set here: {reason}")


def _threads(name: str, given: int | None, sizes: TimedSizes) -> int | None:
    """Return the threads given before or after `--`; raise EngineError if both are given."""
    if given is not None and sizes.threads is not None:
        raise EngineError(
            f"engine {name}: --threads is given before `--` ({sizes.threads}) and after it "
            f"({given}); give it once"
        )
    return given if sizes.threads is None else sizes.threads


def write_timed_graph(model: Checkpoint, precision: Precision) -> None:
    """Write the graph of a model of random weights into its folder, to be timed.

    Nothing is rounded or rescaled with regard to what it multiplies, which takes no time here and
    changes none later.
    """
    from converters.to_onnx.rescaling import zero_exponents
    from converters.to_onnx.writer import build_graph, save_graph

    folder = model.folder / ONNX_DIR
    folder.mkdir()
    exponents = zero_exponents(model, precision)
    save_graph(build_graph(model, precision, exponents=exponents), folder)
