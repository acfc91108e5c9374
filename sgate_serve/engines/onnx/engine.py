"""The embedded engine: an ONNX decoder graph on ONNX Runtime, with slot-based batching.

It needs neither torch nor transformers. Sizes that the user leaves open are chosen from the graph
and the machine, and logged.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.engines.engine_options import CPU, OnnxOptions, SlotOptions
from sgate_serve.engines.model_protocols import Floats, Tokens
from sgate_serve.engines.onnx.graph_metadata import GraphMetadata, cannot_run
from sgate_serve.engines.onnx.kv_cache import bytes_per_token, cache_dtypes
from sgate_serve.engines.onnx.runner import (
    OnnxRunner,
    RunnerSizes,
    check_interface,
    open_session,
)
from sgate_serve.engines.onnx.states import bytes_per_slot
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.environment import memory_bytes, num_cpus
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.one_call import graph_with_outputs, prefill_feeds
from sgate_serve.onnx_format.precision import FP32, Precision, precision_named
from sgate_serve.options import flag_of

logger = logging.getLogger(__name__)

# Decode steps are bound by reading the weights, so more rows per step cost little.
SLOTS_PER_CPU, MIN_SLOTS, MAX_SLOTS = 4, 4, 64
# The share of memory that the KV cache may take if the user gives no size.
CACHE_SHARE = 0.25
# A CPU's matrix products gain little beyond this many rows, and a chunk delays running streams.
DEFAULT_PREFILL_CHUNK = 128


class OnnxEngine(SlotEngine):
    """`SlotEngine` over an `OnnxRunner`."""

    name = "onnx"
    version = str(ort.__version__)

    def __init__(self, folder: Path, runner: OnnxRunner, prefill_chunk: int) -> None:
        super().__init__(runner, prefill_chunk)
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, options: SlotOptions | None = None) -> "OnnxEngine":
        """Load `model.onnx` from `folder`; raise EngineError if it is missing or does not fit."""
        chunk = prefill_chunk(options or SlotOptions())
        runner = load_runner(folder, options)
        logger.info("onnx engine: prefill_chunk=%d", chunk)
        return cls(folder, runner, chunk)

    def residuals(self, tokens: Tokens, types: Tokens | None = None) -> list[Floats]:
        """Return the residual stream after each layer, from a second copy of the graph."""
        return residuals(self._folder, tokens)


@dataclass(frozen=True)
class GraphInfo:
    """The metadata of a graph."""

    kind: str
    capacity: int
    num_layers: int
    precision: str = FP32
    block: int = 0
    row_multiple: int = 1
    is_in_rows: bool = False

    @classmethod
    def read(cls, metadata: Mapping[str, str], source: Path) -> "GraphInfo":
        """Parse metadata_props; raise EngineError for another format version or bad values."""
        found = GraphMetadata(metadata, source)
        version = metadata.get(names.META_VERSION)
        if version != str(names.FORMAT_VERSION):
            raise EngineError(
                f"{source}: graph format version {version!r}, this release reads "
                f"{names.FORMAT_VERSION}; convert the model again"
            )
        return cls(
            kind=found.text(names.META_KIND, (names.GENERATE, names.CLASSIFY, names.EMBED)),
            capacity=found.whole(names.META_CAPACITY, least=1),
            num_layers=found.whole(names.META_NUM_LAYERS),
            # Graphs written before these keys existed are fp32.
            precision=metadata.get(names.META_PRECISION, FP32),
            block=found.whole(names.META_BLOCK, 0),
            row_multiple=found.whole(names.META_ROW_MULTIPLE, 1, least=1),
            is_in_rows=names.META_IN_ROWS in metadata,
        )

    @property
    def held(self) -> Precision:
        """The format of the matrices; int8 without blocks is that of encoders."""
        is_encoder = self.precision == INT8 and not self.block
        return precision_named(self.precision, is_encoder=is_encoder)

    @property
    def weights(self) -> str:
        """The format of the weights in words."""
        return names.format_in_words(self.precision, self.block, self.is_in_rows)

    def check_length(self, max_model_len: int | None) -> None:
        """Raise EngineError for a length beyond the positions of the graph."""
        if max_model_len is not None and max_model_len > self.capacity:
            raise EngineError(
                f"max_model_len {max_model_len} exceeds the graph's capacity of {self.capacity} "
                "positions; give at most that"
            )


def load_runner(folder: Path, options: SlotOptions | None = None) -> OnnxRunner:
    """Load the graph in `folder` with a KV cache of the requested size.

    Raises EngineError for a graph that does not generate text, has another precision or KV cache,
    or does not run.
    """
    own = OnnxOptions.of(options)
    path = graph_path(folder)
    threads = own.threads or num_cpus()
    session = open_session(str(path), folder, threads, own.device)
    info = GraphInfo.read(session.get_modelmeta().custom_metadata_map, path)
    if info.kind != names.GENERATE:
        raise EngineError(
            f"{path} is a graph to {info.kind} with; it does not generate text: load it "
            "as a pooling model"
        )
    check_interface(session, path)
    _check_as_asked(own, info, session, path)
    token_bytes, slot_bytes = bytes_per_token(session), bytes_per_slot(session)
    sizes = choose_sizes(own, info, token_bytes, slot_bytes)
    logger.info(
        "onnx engine: weights %s, slots=%d max_model_len=%d threads=%d device=%s, KV cache of %d "
        "tokens in up to %.0f MiB, %d bytes a token in %s",
        info.weights,
        sizes.num_slots,
        sizes.max_model_len,
        threads,
        own.device,
        sizes.cache_tokens,
        sizes.cache_tokens * token_bytes / 2**20,
        token_bytes,
        " and ".join(cache_dtypes(session)) or "no layer",
    )
    if slot_bytes:
        logger.info(
            "onnx engine: recurrent layers, states of %d bytes a slot, %.0f MiB in all; no prefix "
            "is shared, as a state cannot go back to an earlier token",
            slot_bytes,
            sizes.num_slots * slot_bytes / 2**20,
        )
    held = replace(info.held, int8_cache=cache_dtypes(session) == [INT8])
    runner = OnnxRunner(session, path, held, sizes, own.device)
    runner.try_out()
    return runner


def _check_as_asked(options: OnnxOptions, info: GraphInfo, session: Any, path: Path) -> None:
    """Raise EngineError for a graph in another precision, or with another KV cache, than asked."""
    remedy = "give the model folder, from which such a graph is built, or omit"
    if options.precision not in (None, info.precision):
        raise EngineError(
            f"{path} is a graph in {info.precision}, not in {options.precision}; {remedy} "
            "--precision"
        )
    if options.device != CPU and bytes_per_slot(session):
        raise EngineError(
            f"{path} has recurrent layers, whose states are in host memory alone; give --device "
            f"{CPU}, found {options.device}"
        )
    found = cache_dtypes(session)
    if options.kv_cache_dtype == INT8 and found not in ([], [INT8]):
        flag = flag_of("kv_cache_dtype")
        raise EngineError(
            f"{path} is a graph with a KV cache in {', '.join(found)}, not in {INT8}; {remedy} "
            f"{flag}"
        )


def prefill_chunk(options: SlotOptions) -> int:
    """Return the prompt tokens per step; raise EngineError for more than graphs support."""
    chunk = options.prefill_chunk or DEFAULT_PREFILL_CHUNK
    if chunk > names.MAX_CHUNK:
        raise EngineError(f"prefill_chunk {chunk} is too large; give at most {names.MAX_CHUNK}")
    return chunk


def residuals(
    folder: Path, tokens: Tokens, own_feeds: Mapping[str, Any] = MappingProxyType({})
) -> list[Floats]:
    """Return the residual stream after each layer, [s, hidden] each, for `tokens` [s].

    `own_feeds` replace inputs that do not follow from the number of tokens. The graph is loaded
    again with these values as outputs: for verification, not for serving.
    """
    import onnx_ir as ir  # slow to import, and not needed for serving

    path = graph_path(folder)
    model = ir.load(path)
    info = GraphInfo.read(dict(model.metadata_props), path)
    wanted = [names.residual_name(layer) for layer in range(info.num_layers)]
    session = open_session(graph_with_outputs(model, wanted, path), folder, num_cpus())
    try:
        streams = session.run(wanted, prefill_feeds(session, tokens, own_feeds))
    except Exception as error:  # ONNX Runtime's exception classes have no common base
        raise cannot_run(path, error) from error
    return [stream.astype(np.float32) for stream in streams]


def graph_path(folder: Path) -> Path:
    path = folder / names.GRAPH_FILE
    if not path.exists():
        raise EngineError(
            f"{path} is missing; write it with `sgate convert --to hf,onnx`, or use --engine torch"
        )
    return path


def choose_sizes(
    options: OnnxOptions, info: GraphInfo, token_bytes: int, slot_bytes: int = 0
) -> RunnerSizes:
    """Return the user's sizes, or those that the graph and a share of memory allow.

    Slots share what their states, of `slot_bytes` each, leave of the memory: one request may fill
    the whole cache, but not all of them at once.
    Raises EngineError if the graph or the memory is too small for a size that the user gives.
    """
    slots = options.slots or min(max(SLOTS_PER_CPU * num_cpus(), MIN_SLOTS), MAX_SLOTS)
    info.check_length(options.max_model_len)
    length = options.max_model_len or info.capacity
    given = options.kv_cache_mib
    memory = memory_bytes() * CACHE_SHARE if given is None else given * 2**20
    affordable = int((memory - slots * slot_bytes) // max(1, token_bytes))
    needed = 1 if options.max_model_len is None else length
    if affordable < needed:
        share = f"{CACHE_SHARE:.0%} of this machine's memory" if given is None else f"{given} MiB"
        states = (
            f" beside {slots * slot_bytes} of the states of {slots} slots" if slot_bytes else ""
        )
        lower = "slots or max_model_len" if slot_bytes else "max_model_len"
        raise EngineError(
            f"the KV cache of {needed} tokens needs {needed * token_bytes} bytes{states}, more "
            f"than {share}; lower {lower}, or raise {flag_of('kv_cache_mib')}"
        )
    length = min(length, affordable)
    tokens = min(affordable, slots * length)
    # With a single slot no other row can change how its sums are rounded.
    multiple = info.row_multiple if slots > 1 else 1
    chunk = prefill_chunk(options)
    return RunnerSizes(slots, length, tokens, chunk, multiple, options.batch_invariant)
