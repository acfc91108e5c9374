"""The ONNX decoder graph over preallocated buffers: one row of each buffer is one slot.

Past and present of a layer are bound to the same memory, so a call writes its new keys and values,
or the new states of recurrent layers, in place and copies nothing. Rows of a call may differ in
length; a row without new tokens is idle.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.engine_options import CPU, CUDA
from sgate_serve.engines.onnx.graph_metadata import REMEDY, REMEDY_IN_CACHE, cannot_run
from sgate_serve.engines.onnx.integer_products import for_this_cpu
from sgate_serve.engines.onnx.kv_cache import KvCache
from sgate_serve.engines.onnx.shared_calls import calls_of
from sgate_serve.engines.onnx.states import SlotStates
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.environment import cache_dir, install_command
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.one_call import TYPES
from sgate_serve.onnx_format.precision import Precision

Ints = NDArray[np.int64]

# Tokens that are cut off a slot return their memory from this number on.
LONG_TAIL = 64
# Longer than the pause between two steps of a request, so threads are still awake for the next.
SPIN_MICROSECONDS = 2000
# What every call of a graph that generates is given, whatever its positions.
CALL_INPUTS = (
    names.INPUT_IDS,
    names.UNPACK_INDEX,
    names.PACK_INDEX,
    names.SEQLENS_K,
    names.TOTAL_SEQUENCE_LENGTH,
    names.QUERY_SEQLENS,
    names.LOGIT_INDEX,
)
# Where sessions that are opened in this context write the times of their nodes (profile.py).
PROFILE: ContextVar[Path | None] = ContextVar("profile", default=None)
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}


@dataclass(frozen=True)
class RunnerSizes:
    """Sizes of a runner: slots, tokens per slot, tokens of all slots, and tokens per shared call.

    `chunk` bounds the new tokens of a row in a call with several rows. Calls are padded to
    multiples of `row_multiple` tokens and logits, as some kernels round a remainder differently;
    a lone token or logit is only with `pads_lone`.
    """

    num_slots: int
    max_model_len: int
    cache_tokens: int
    chunk: int
    row_multiple: int = 1
    pads_lone: bool = False


class _Shape(NamedTuple):
    """Sizes of one call: its rows of the cache, its longest row, all tokens, all logits.

    The totals include padding.
    """

    first: int
    stop: int
    longest: int
    num_tokens: int
    num_logits: int


@dataclass(frozen=True)
class _Call:
    """The bindings of one call shape: the arrays that a run reads, and the logits it writes."""

    binding: Any
    inputs: dict[str, Array]
    logits: Logits


class OnnxRunner:
    """A session and its KV cache; a `Runner` of engines/runner.py. Not thread-safe."""

    def __init__(
        self, session: Any, path: Path, precision: Precision, sizes: RunnerSizes, device: str = CPU
    ) -> None:
        self.session, self.path = session, path
        self.precision, self.num_slots = precision, sizes.num_slots
        self.max_model_len, self.cache_tokens = sizes.max_model_len, sizes.cache_tokens
        shapes = {output.name: output.shape for output in session.get_outputs()}
        self.vocab_size = int(shapes[names.LOGITS][-1])
        self.lengths = np.zeros(sizes.num_slots, np.int64)
        self.cache = KvCache(session, sizes.num_slots, sizes.max_model_len + sizes.chunk, device)
        self._device, self._chunk, self._multiple = device, sizes.chunk, sizes.row_multiple
        self._pads_lone = sizes.pads_lone
        self._wanted = {value.name for value in session.get_inputs()}
        self.states = SlotStates(session, sizes.num_slots)
        # Keys and values on a GPU are not copied.
        self.shares_prefixes = device == CPU and not self.states
        self._decode_calls: dict[_Shape, _Call] = {}

    def forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        """Append tokens to distinct slots; return the logits [n, vocab] in the order of chunks.

        Raises EngineError if the graph does not run.
        """
        calls = calls_of(chunks) if self.states else []
        if len(calls) < 2:
            return self._forward(chunks)
        found: dict[int, Logits] = {}
        for call in calls:
            own = [chunks[index] for index in call]
            ends = np.cumsum([chunk.num_logits for chunk in own])
            found |= zip(call, np.split(self._forward(own), ends[:-1]), strict=True)
        return np.concatenate([found[index] for index in range(len(chunks))])

    def _forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        """Make one call: it spans all rows from the first slot to the last, some of them idle."""
        slots = np.array([chunk.slot for chunk in chunks])
        counts = np.array([len(chunk.tokens) for chunk in chunks])
        nums = np.array([chunk.num_logits for chunk in chunks])
        assert (self.lengths[slots] + counts).max() <= self.max_model_len, "a slot would overflow"
        assert len(chunks) == 1 or counts.max() <= self._chunk, "a chunk is too long"
        shape = _Shape(
            int(slots.min()),
            int(slots.max()) + 1,
            int(counts.max()),
            self._padded(counts.sum()),
            self._padded(nums.sum()),
        )
        call = self._call(shape)
        tokens = np.concatenate([np.asarray(chunk.tokens, np.int64) for chunk in chunks])
        self._fill(call.inputs, shape, tokens, slots, counts)
        ends = np.cumsum(counts)
        call.inputs[names.LOGIT_INDEX][: nums.sum()] = np.repeat(ends - nums, nums) + ramps(nums)
        try:
            self.session.run_with_iobinding(call.binding)
        except Exception as error:  # ONNX Runtime's exception classes have no common base
            raise cannot_run(self.path, error) from error
        self.lengths[slots] += counts
        # A copy, since a later call overwrites the bound array.
        return call.logits[: nums.sum()].copy()

    def _padded(self, count: int) -> int:
        if count == 1 and not self._pads_lone:
            return 1
        return -(-int(count) // self._multiple) * self._multiple

    def try_out(self) -> None:
        """Run the first and the last token; raise EngineError if the graph does not run."""
        tokens = [0, self.vocab_size - 1][: self.max_model_len]
        self.forward([TokenChunk(0, tokens, 1)])
        self.release(0)

    def release(self, slot: int) -> None:
        """Discard the tokens of a slot."""
        self.lengths[slot] = 0
        self.cache.release(slot)
        self.states.clear(slot)

    def share(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`, which may be `slot` itself."""
        assert length <= self.lengths[source], "there are fewer tokens to share"
        if source != slot:
            self.cache.copy(source, slot, length)
        elif self.lengths[slot] - length > LONG_TAIL:
            self.cache.trim(slot, length)
        self.lengths[slot] = length

    def _fill(
        self, inputs: dict[str, Array], shape: _Shape, tokens: Ints, slots: Ints, counts: Ints
    ) -> None:
        """Write a call's inputs except the logit index; tokens are packed in chunk order.

        Padding stays zero: tokens outside every row that attention sees.
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
        # GroupQueryAttention needs a total of at least 1, even for an idle, empty row.
        totals = np.maximum(self.lengths[shape.first : shape.stop] + new, 1)
        inputs[names.SEQLENS_K][:] = totals - 1
        inputs[names.TOTAL_SEQUENCE_LENGTH][...] = totals.max()
        inputs[names.QUERY_SEQLENS][:] = new

    def _call(self, shape: _Shape) -> _Call:
        """Return the bound call of a shape; those of pure decode steps are cached."""
        if shape.longest > 1:
            return self._bind(shape)
        if shape not in self._decode_calls:
            self._decode_calls[shape] = self._bind(shape)
        return self._decode_calls[shape]

    def _bind(self, shape: _Shape) -> _Call:
        """Allocate the inputs and logits of a call; bind them and its rows of the buffers."""
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
        rows = slice(shape.first, shape.stop)
        for view in (*self.cache.views(rows), *self.states.views(rows)):
            place = (self._device, 0, view.dtype, view.shape, view.pointer)
            binding.bind_input(view.name, *place)
            binding.bind_output(names.present_name(view.name), *place)
        return _Call(binding, inputs, logits)


def ramps(counts: Ints) -> Ints:
    """Return 0 … count - 1 for each count, concatenated."""
    starts = np.cumsum(counts) - counts
    ramp: Ints = np.arange(counts.sum()) - np.repeat(starts, counts)
    return ramp


def check_interface(session: Any, path: Path) -> None:
    """Raise EngineError unless a graph that generates has the inputs and outputs that we bind."""
    found, outputs = session.get_inputs(), {value.name: value for value in session.get_outputs()}
    missing = {*CALL_INPUTS} - {value.name for value in found}
    missing |= {names.LOGITS} - outputs.keys()
    if missing:
        raise EngineError(f"{path}: it has no {', '.join(sorted(missing))}; {REMEDY}")
    widths = [(outputs[names.LOGITS], outputs[names.LOGITS].shape[-1:])]
    pasts = (value for value in found if value.name.startswith(names.PAST_PREFIX))
    widths += [(past, past.shape[1::2] if len(past.shape) == 4 else []) for past in pasts]
    states = (value for value in found if value.name.startswith(names.PAST_STATE_PREFIX))
    widths += [(state, state.shape[1:]) for state in states]
    for value, sizes in widths:
        if value.type not in TYPES or not sizes or not all(isinstance(n, int) for n in sizes):
            raise EngineError(
                f"{path}: {value.name} is a {value.type} of {value.shape}, which this release does "
                f"not read; {REMEDY}"
            )


def open_session(graph: str | bytes, folder: Path, threads: int, device: str = CPU) -> Any:
    """Load a graph, given as a path or as bytes, whose weights are in `folder`, onto a device.

    Raises EngineError naming the file if ONNX Runtime cannot load it, or lacks the device.
    """
    if PROVIDERS[device] not in ort.get_available_providers():
        raise EngineError(
            f"this ONNX Runtime {ort.__version__} has no {PROVIDERS[device]}; for device {device} "
            f"run: {install_command('gpu')}, then uninstall onnxruntime with the same pip"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised: a line in ONNX Runtime's log says no more
    # By default threads keep spinning long after a run and slow down whatever runs next: another
    # model of a benchmark, or the server's event loop.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    if (profile := PROFILE.get()) is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # Nodes without a kernel for the device run on the CPU.
    providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS[CPU]]))
    try:
        return ort.InferenceSession(for_this_cpu(graph), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exception classes have no common base
        reason = str(error).splitlines()[0]
        is_cached = folder.resolve().is_relative_to(cache_dir().resolve())
        raise EngineError(
            f"{folder / names.GRAPH_FILE}: ONNX Runtime {ort.__version__} cannot load it "
            f"({reason}); {REMEDY_IN_CACHE if is_cached else REMEDY}"
        ) from error
