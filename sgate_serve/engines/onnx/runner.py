"""The ONNX decoder graph over preallocated KV buffers: one row of each buffer is one slot.

Past and present of a layer are bound to the same memory, so a call writes its new keys and values
in place and copies nothing. Rows of a call may differ in length; a row without new tokens is idle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.onnx.kv_cache import CPU, CUDA, KvCache
from sgate_serve.engines.runner import Feed
from sgate_serve.engines.sampling import Logits
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format import names

Ints = NDArray[np.int64]

# Longer than the pause between two steps of one request, so that threads are awake for the next.
SPIN_MICROSECONDS = 2000
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}


@dataclass(frozen=True)
class RunnerSizes:
    """What a runner holds: slots, tokens of one, tokens of all, and the most a shared call feeds.

    `chunk` bounds a row's new tokens in a call that also feeds rows that are longer. Calls are
    filled up to multiples of `row_multiple` tokens and logits, for the sake of kernels that round
    those left over in another way.
    """

    num_slots: int
    max_model_len: int
    cache_tokens: int
    chunk: int
    row_multiple: int = 1


class _Shape(NamedTuple):
    """Sizes of one call: its rows of the cache, tokens of the longest, all tokens, all logits.

    Of those at the end some may fill the call up.
    """

    first: int
    stop: int
    longest: int
    num_tokens: int
    num_logits: int


@dataclass(frozen=True)
class _Call:
    """One shape of call, bound once: the arrays that a run reads, and the logits it writes."""

    binding: Any
    inputs: dict[str, Array]
    logits: Logits


class OnnxRunner:
    """A session and its KV cache; a `Runner` of engines/runner.py. Not thread-safe."""

    def __init__(self, session: Any, sizes: RunnerSizes, device: str = CPU) -> None:
        self.session, self.num_slots = session, sizes.num_slots
        self.max_model_len, self.cache_tokens = sizes.max_model_len, sizes.cache_tokens
        shapes = {output.name: output.shape for output in session.get_outputs()}
        self.vocab_size = int(shapes[names.LOGITS][-1])
        self.lengths = np.zeros(sizes.num_slots, np.int64)
        self.cache = KvCache(session, sizes.num_slots, sizes.max_model_len + sizes.chunk, device)
        self._device, self._chunk, self._multiple = device, sizes.chunk, sizes.row_multiple
        self._wanted = {value.name for value in session.get_inputs()}
        self._decode_calls: dict[_Shape, _Call] = {}

    def forward(self, feeds: Sequence[Feed]) -> Logits:
        """Append tokens to different slots; return the wanted logits [n, vocab], feed by feed.

        The call spans the rows from the first slot to the last; those between are idle.
        """
        slots = np.array([feed.slot for feed in feeds])
        counts = np.array([len(feed.tokens) for feed in feeds])
        nums = np.array([feed.num_logits for feed in feeds])
        assert (self.lengths[slots] + counts).max() <= self.max_model_len, "a slot would overflow"
        assert len(feeds) == 1 or counts.max() <= self._chunk, "the chunk is over the runner's"
        shape = _Shape(
            int(slots.min()),
            int(slots.max()) + 1,
            int(counts.max()),
            self._filled_up(counts.sum()),
            self._filled_up(nums.sum()),
        )
        call = self._call(shape)
        tokens = np.concatenate([np.asarray(feed.tokens, np.int64) for feed in feeds])
        self._fill(call.inputs, shape, tokens, slots, counts)
        ends = np.cumsum(counts)
        call.inputs[names.LOGIT_INDEX][: nums.sum()] = np.repeat(ends - nums, nums) + ramps(nums)
        self.session.run_with_iobinding(call.binding)
        self.lengths[slots] += counts
        # A copy, so that a later call cannot change what was returned.
        return call.logits[: nums.sum()].copy()

    def _filled_up(self, count: int) -> int:
        return -(-int(count) // self._multiple) * self._multiple

    def release(self, slot: int) -> None:
        """Forget what the slot holds."""
        self.lengths[slot] = 0
        self.cache.forget(slot)

    def _fill(
        self, inputs: dict[str, Array], shape: _Shape, tokens: Ints, slots: Ints, counts: Ints
    ) -> None:
        """Write a call's inputs but for the wanted logits: tokens lie packed in order of feeds.

        What fills the call up stays zero: tokens that attention sees in no row.
        """
        rows, within = np.repeat(slots - shape.first, counts), ramps(counts)
        inputs[names.INPUT_IDS][: len(tokens)] = tokens
        inputs[names.UNPACK_INDEX][rows, within] = np.arange(len(tokens))
        inputs[names.PACK_INDEX][: len(tokens)] = rows * shape.longest + within
        if names.POSITION_IDS in inputs:
            positions = np.repeat(self.lengths[slots], counts) + within
            inputs[names.POSITION_IDS][: len(tokens)] = positions
        new = np.zeros(shape.stop - shape.first, np.int64)
        new[slots - shape.first] = counts
        # GroupQueryAttention wants a total of at least 1, also from an idle row that is empty.
        totals = np.maximum(self.lengths[shape.first : shape.stop] + new, 1)
        inputs[names.SEQLENS_K][:] = totals - 1
        inputs[names.TOTAL_SEQUENCE_LENGTH][...] = totals.max()
        inputs[names.QUERY_SEQLENS][:] = new

    def _call(self, shape: _Shape) -> _Call:
        """Return the bound call of a shape; those of plain decode steps are kept."""
        if shape.longest > 1:
            return self._bind(shape)
        if shape not in self._decode_calls:
            self._decode_calls[shape] = self._bind(shape)
        return self._decode_calls[shape]

    def _bind(self, shape: _Shape) -> _Call:
        """Allocate the inputs and logits of a call and bind them and its rows of the cache."""
        batch = shape.stop - shape.first
        inputs: dict[str, Array] = {
            names.INPUT_IDS: np.zeros(shape.num_tokens, np.int64),
            names.UNPACK_INDEX: np.zeros((batch, shape.longest), np.int64),
            names.PACK_INDEX: np.zeros(shape.num_tokens, np.int64),
            names.POSITION_IDS: np.zeros(shape.num_tokens, np.int64),
            names.SEQLENS_K: np.zeros(batch, np.int32),
            names.TOTAL_SEQUENCE_LENGTH: np.zeros((), np.int32),
            names.QUERY_SEQLENS: np.zeros(batch, np.int32),
            names.LOGIT_INDEX: np.zeros(shape.num_logits, np.int64),
        }
        inputs = {name: array for name, array in inputs.items() if name in self._wanted}
        logits = np.empty((shape.num_logits, self.vocab_size), np.float32)
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, CPU, 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(names.LOGITS, CPU, 0, np.float32, logits.shape, logits.ctypes.data)
        for view in self.cache.views(slice(shape.first, shape.stop)):
            place = (self._device, 0, view.dtype, view.shape, view.pointer)
            binding.bind_input(view.name, *place)
            present = view.name.replace(names.PAST_PREFIX, names.PRESENT_PREFIX)
            binding.bind_output(present, *place)
        return _Call(binding, inputs, logits)


def ramps(counts: Ints) -> Ints:
    """Return 0 … count - 1 for each of the counts, one after another."""
    starts = np.cumsum(counts) - counts
    ramp: Ints = np.arange(counts.sum()) - np.repeat(starts, counts)
    return ramp


def open_session(graph: str | bytes, folder: Path, threads: int, device: str = CPU) -> Any:
    """Load a graph (a path or serialized) whose weights lie in `folder`, onto a device.

    Raises EngineError naming the file if ONNX Runtime cannot load it, or has no such device.
    """
    if PROVIDERS[device] not in ort.get_available_providers():
        raise EngineError(
            f"this ONNX Runtime {ort.__version__} has no {PROVIDERS[device]}; for device {device} "
            'run: pip install "sgate-serve[gpu]", then pip uninstall onnxruntime'
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # By default threads spin on for long after a run, and slow whatever runs next: another model
    # in a comparison, or the server's event loop.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    # What the device has no kernel for runs on the CPU.
    providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS[CPU]]))
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exception classes have no common base
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"{folder / names.GRAPH_FILE}: ONNX Runtime {ort.__version__} cannot load it "
            f"({reason}); convert the model again"
        ) from error
