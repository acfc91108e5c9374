"""The ONNX decoder graph over preallocated KV buffers: one row of each buffer is one slot.

Past and present of a layer are bound to the same memory, so a call writes its new keys and values
in place and copies nothing. Rows of a call may differ in length; a row without new tokens is idle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sgate_serve import onnx_format as names
from sgate_serve.engines.sampling import Logits
from sgate_serve.errors import EngineError
from sgate_serve.tensor_files import Array

Ints = NDArray[np.int64]

# Longer than the pause between two steps of one request, so that threads are awake for the next.
SPIN_MICROSECONDS = 2000


@dataclass(frozen=True)
class _Call:
    """One shape of call, bound once: the arrays that a run reads, and the logits it writes."""

    binding: Any
    inputs: dict[str, Array]
    logits: Logits


class OnnxRunner:
    """A session and its KV cache; a `Runner` of engines/scheduler.py. Not thread-safe."""

    def __init__(self, session: Any, num_slots: int, max_model_len: int) -> None:
        self.session, self.num_slots, self.max_model_len = session, num_slots, max_model_len
        shapes = {output.name: output.shape for output in session.get_outputs()}
        self.vocab_size = int(shapes[names.LOGITS][-1])
        self.lengths = np.zeros(num_slots, np.int64)
        # Zero pages cost no memory before a slot reaches them.
        self.cache: dict[str, Array] = {
            name: np.zeros((num_slots, heads, max_model_len, width), np.float32)
            for name, (heads, width) in cache_shapes(session).items()
        }
        self._decode_calls: dict[tuple[int, int], _Call] = {}

    def prefill(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [vocab] after the last."""
        return self._append(slot, tokens, 1).reshape(-1)

    def prefill_scored(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [len(tokens), vocab] of all."""
        return self._append(slot, tokens, len(tokens))

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Logits:
        """Append one token to each slot; return [len(slots), vocab] in that order.

        The call spans the rows from the first slot to the last; those between are idle.
        """
        rows = slice(min(slots), max(slots) + 1)
        key = (rows.start, rows.stop)
        if key not in self._decode_calls:
            self._decode_calls[key] = self._bind(rows, 1, 1)
        call, active = self._decode_calls[key], np.asarray(slots) - rows.start
        new = np.zeros(rows.stop - rows.start, np.int64)
        new[active] = 1
        call.inputs[names.INPUT_IDS][active, 0] = tokens
        # Indexing by row numbers copies, so a later call cannot change what was returned.
        return np.asarray(self._run(call, rows, new)[active, 0])

    def logits(self, tokens: Ints) -> Logits:
        """Return the logits [s, vocab] at every position of `tokens` [s], in one call of its own.

        Raises EngineError if they do not fit; the runner must be idle.
        """
        assert not self.lengths.any(), "logits() needs an idle runner"
        if len(tokens) > self.max_model_len:
            raise EngineError(
                f"{len(tokens)} tokens do not fit this runner's max_model_len of "
                f"{self.max_model_len}; raise it or give fewer"
            )
        logits = self._append(0, tokens.tolist(), len(tokens))
        self.release(0)
        return logits

    def release(self, slot: int) -> None:
        """Forget what the slot holds; old values stay in memory and are never read."""
        self.lengths[slot] = 0

    def _append(self, slot: int, tokens: Sequence[int], num_positions: int) -> Logits:
        """Append tokens; return the logits [num_positions, vocab] after the last of them."""
        rows = slice(slot, slot + 1)
        call = self._bind(rows, len(tokens), num_positions)
        call.inputs[names.INPUT_IDS][0] = tokens
        call.inputs[names.LOGIT_POSITIONS][0] = np.arange(len(tokens))[-num_positions:]
        logits = self._run(call, rows, np.array([len(tokens)]))
        return logits.reshape(num_positions, self.vocab_size)

    def _run(self, call: _Call, rows: slice, new: Ints) -> Logits:
        """Run a bound call that adds `new` tokens to each of `rows`; return [b, n, vocab]."""
        # GroupQueryAttention wants a total of at least 1, also from an idle row that is empty.
        totals = np.maximum(self.lengths[rows] + new, 1)
        assert totals.max() <= self.max_model_len, "a slot would overflow"
        call.inputs[names.SEQLENS_K][:] = totals - 1
        call.inputs[names.TOTAL_SEQUENCE_LENGTH][...] = totals.max()
        call.inputs[names.QUERY_SEQLENS][:] = new
        self.session.run_with_iobinding(call.binding)
        self.lengths[rows] += new
        return call.logits

    def _bind(self, rows: slice, num_tokens: int, num_positions: int) -> _Call:
        """Allocate the inputs and logits of a call over `rows` and bind them and their cache."""
        batch = rows.stop - rows.start
        inputs: dict[str, Array] = {
            names.INPUT_IDS: np.zeros((batch, num_tokens), np.int64),
            names.SEQLENS_K: np.zeros(batch, np.int32),
            names.TOTAL_SEQUENCE_LENGTH: np.zeros((), np.int32),
            names.QUERY_SEQLENS: np.zeros(batch, np.int32),
            names.LOGIT_POSITIONS: np.zeros((batch, num_positions), np.int64),
        }
        logits = np.empty((batch, num_positions, self.vocab_size), np.float32)
        outputs: dict[str, Array] = {names.LOGITS: logits}
        cache = {name: buffer[rows] for name, buffer in self.cache.items()}
        for name, view in cache.items():
            outputs[name.replace(names.PAST_PREFIX, names.PRESENT_PREFIX)] = view
        binding = self.session.io_binding()
        for name, array in (inputs | cache).items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return _Call(binding, inputs, logits)


def open_session(graph: str | bytes, folder: Path, threads: int) -> Any:
    """Load a graph (a path or serialized) whose weights lie in `folder`, on the CPU.

    Raises EngineError naming the file if ONNX Runtime cannot load it.
    """
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
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception classes have no common base
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"{folder / names.GRAPH_FILE}: ONNX Runtime {ort.__version__} cannot load it "
            f"({reason}); convert the model again"
        ) from error


def cache_shapes(session: Any) -> dict[str, tuple[int, int]]:
    """Return input name → (KV heads, head width) of every past buffer of a session."""
    return {
        value.name: (int(value.shape[1]), int(value.shape[3]))
        for value in session.get_inputs()
        if value.name.startswith(names.PAST_PREFIX)
    }
