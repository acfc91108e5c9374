"""The embedded engine: an ONNX decoder graph on ONNX Runtime's CPU provider behind slots.

Needs neither torch nor transformers. Sizes that the user leaves open are chosen from the graph
and the machine, and logged.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve import onnx_format as names
from sgate_serve.engines.onnx_runner import Ints, OnnxRunner, cache_shapes, open_session
from sgate_serve.engines.scheduler import SlotEngine, SlotOptions
from sgate_serve.environment import memory_bytes, num_cpus
from sgate_serve.errors import EngineError

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 8
# The KV cache may take this share of physical memory when the user names no length.
CACHE_SHARE = 0.25
# A CPU's matrix products gain little beyond this many rows, and running streams wait for a chunk.
DEFAULT_PREFILL_CHUNK = 128


class OnnxEngine(SlotEngine):
    """`SlotEngine` over an `OnnxRunner`."""

    @classmethod
    def load(cls, folder: Path, options: SlotOptions | None = None) -> "OnnxEngine":
        """Load `model.onnx` from `folder`; raise EngineError if it is missing or does not fit."""
        options = options or SlotOptions()
        runner = load_runner(folder, options)
        chunk = options.prefill_chunk or DEFAULT_PREFILL_CHUNK
        logger.info("onnx engine: prefill_chunk=%d", chunk)
        return cls("onnx", runner, chunk)


@dataclass(frozen=True)
class GraphInfo:
    """What a graph says of itself in its metadata."""

    capacity: int
    num_layers: int

    @classmethod
    def read(cls, metadata: dict[str, str], source: Path) -> "GraphInfo":
        """Parse metadata_props; raise EngineError if this release did not write the graph."""
        version = metadata.get(names.META_VERSION)
        if version != str(names.FORMAT_VERSION):
            raise EngineError(
                f"{source}: graph format version {version!r}, this release reads "
                f"{names.FORMAT_VERSION}; convert the model again"
            )
        return cls(
            capacity=int(metadata[names.META_CAPACITY]),
            num_layers=int(metadata[names.META_NUM_LAYERS]),
        )


def load_runner(folder: Path, options: SlotOptions) -> OnnxRunner:
    """Load the graph in `folder` with a KV cache of the wanted size."""
    path = graph_path(folder)
    threads = options.threads or num_cpus()
    session = open_session(str(path), folder, threads)
    info = GraphInfo.read(session.get_modelmeta().custom_metadata_map, path)
    slots = options.slots or DEFAULT_SLOTS
    bytes_per_token = cache_bytes_per_token(session)
    length = _model_length(info, options, slots * bytes_per_token)
    logger.info(
        "onnx engine: slots=%d max_model_len=%d threads=%d, KV cache up to %.0f MiB",
        slots,
        length,
        threads,
        slots * length * bytes_per_token / 2**20,
    )
    return OnnxRunner(session, slots, length)


def residuals(folder: Path, tokens: Ints) -> list[NDArray[np.float32]]:
    """Return the residual stream after each layer, [s, hidden] each, for `tokens` [s].

    The graph is loaded anew with those values as outputs: for verification, not for serving.
    """
    import onnx_ir as ir  # slow to import, and serving does without it

    path = graph_path(folder)
    model = ir.load(path)
    info = GraphInfo.read(dict(model.metadata_props), path)
    wanted = [names.residual_name(layer) for layer in range(info.num_layers)]
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in wanted:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    graph = ir.to_proto(model).SerializeToString()
    session = open_session(graph, folder, num_cpus())
    return [stream[0] for stream in session.run(wanted, _prefill_feeds(session, tokens))]


def graph_path(folder: Path) -> Path:
    path = folder / names.GRAPH_FILE
    if not path.exists():
        raise EngineError(
            f"{path} is missing; write it with `sgate convert --to hf,onnx`, or use --engine torch"
        )
    return path


def cache_bytes_per_token(session: Any) -> int:
    """Return the bytes of keys and values that one token takes over all layers."""
    values = sum(heads * width for heads, width in cache_shapes(session).values())
    return values * np.dtype(np.float32).itemsize


def _model_length(info: GraphInfo, options: SlotOptions, bytes_per_position: int) -> int:
    """Return max_model_len: the user's, or what the graph allows and a share of memory holds."""
    if options.max_model_len is not None:
        if options.max_model_len > info.capacity:
            raise EngineError(
                f"max_model_len {options.max_model_len} exceeds the graph's capacity of "
                f"{info.capacity} positions; give at most that"
            )
        return options.max_model_len
    memory = memory_bytes() * CACHE_SHARE
    affordable = int(memory // max(1, bytes_per_position))
    if affordable < 1:
        raise EngineError(
            f"the KV cache needs {bytes_per_position} bytes for one position of every slot, more "
            f"than {CACHE_SHARE:.0%} of this machine's memory; give fewer slots"
        )
    return min(info.capacity, affordable)


def _prefill_feeds(session: Any, tokens: Ints) -> dict[str, Any]:
    """Return the inputs of one call over a fresh cache of just the length of `tokens`."""
    length = len(tokens)
    past = {
        name: np.zeros((1, heads, length, width), np.float32)
        for name, (heads, width) in cache_shapes(session).items()
    }
    return past | {
        names.INPUT_IDS: np.asarray(tokens, np.int64)[None],
        names.SEQLENS_K: np.array([length - 1], np.int32),
        names.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        names.QUERY_SEQLENS: np.array([length], np.int32),
        names.LOGIT_POSITIONS: np.array([[length - 1]], np.int64),
    }
