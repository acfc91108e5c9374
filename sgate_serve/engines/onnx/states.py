"""What the recurrent layers of a graph carry from token to token: one row of a buffer per slot.

A state is that of all tokens of a slot together. It cannot go back to an earlier token, and another
slot can continue none of it, so a runner with states shares no prefixes. Host memory only.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sgate_serve.engines.onnx.kv_cache import View
from sgate_serve.onnx_format.one_call import STATE_DTYPE, state_inputs


def bytes_per_slot(session: Any) -> int:
    """Return the bytes that the states of one slot take over all layers."""
    return sum(state.bytes_per_row for state in state_inputs(session))


class SlotStates:
    """The states [slots, …] of a session, all zeros where a slot has no tokens."""

    def __init__(self, session: Any, num_slots: int) -> None:
        self._buffers = {
            state.name: np.zeros((num_slots, *state.shape), STATE_DTYPE)
            for state in state_inputs(session)
        }

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def views(self, rows: slice) -> Iterator[View]:
        """Yield the rows of each buffer for a range of slots."""
        for name, buffer in self._buffers.items():
            held = buffer[rows]
            yield View(name, held.dtype, held.shape, held.ctypes.data)

    def clear(self, slot: int) -> None:
        """Let a slot begin anew."""
        for buffer in self._buffers.values():
            buffer[slot] = 0
