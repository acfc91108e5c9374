"""Keys and values of all slots: one buffer per past input of the graph, one row per slot.

In host memory a page is backed only while a slot has tokens on it: pages are allocated when written
and returned to the system when the slot is released. On a GPU the buffers are allocated at once.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.engine_options import CPU
from sgate_serve.onnx_format.one_call import past_inputs
from sgate_serve.onnx_format.precision import FP16, FP32

DTYPES = {np.dtype(np.float32): FP32, np.dtype(np.float16): FP16, np.dtype(np.int8): INT8}


def bytes_per_token(session: Any) -> int:
    """Return the bytes of keys and values that one token takes over all layers."""
    return sum(past.bytes_per_token for past in past_inputs(session))


def cache_dtypes(session: Any) -> list[str]:
    """Return the number formats of the KV cache, as precisions are named: one, or none if empty."""
    return sorted({DTYPES[past.dtype] for past in past_inputs(session)})


@dataclass(frozen=True)
class View:
    """Rows of one buffer in the form that IO binding takes."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    pointer: int


class KvCache:
    """The buffers [slots, KV heads, length, head width] of a session, on one device."""

    def __init__(self, session: Any, num_slots: int, length: int, device: str) -> None:
        self._pasts = past_inputs(session)
        self._device, self._length = device, length
        self._maps: dict[str, mmap.mmap] = {}
        self._values: dict[str, Any] = {}
        self._addresses: dict[str, int] = {}
        for past in self._pasts:
            if device == CPU:
                pages = _pages(num_slots * length * past.bytes_per_token)
                self._maps[past.name] = pages
                self._addresses[past.name] = np.frombuffer(pages, np.uint8).ctypes.data
            else:
                shape = [num_slots, past.heads, length, past.width]
                value = ort.OrtValue.ortvalue_from_shape_and_type(shape, past.dtype, device, 0)
                self._values[past.name] = value
                self._addresses[past.name] = value.data_ptr()

    def views(self, rows: slice) -> Iterator[View]:
        """Yield the rows of each buffer for a range of slots."""
        for past in self._pasts:
            start = rows.start * self._length * past.bytes_per_token
            shape = (rows.stop - rows.start, past.heads, self._length, past.width)
            yield View(past.name, past.dtype, shape, self._addresses[past.name] + start)

    def array(self, name: str) -> Array:
        """Return a buffer in host memory as an array [slots, KV heads, length, head width]."""
        past = next(past for past in self._pasts if past.name == name)
        flat = np.frombuffer(self._maps[name], past.dtype)
        return flat.reshape(-1, past.heads, self._length, past.width)

    def copy(self, source: int, slot: int, length: int) -> None:
        """Copy the first `length` tokens of one slot in host memory to another one."""
        for past in self._pasts:
            array = self.array(past.name)
            array[slot, :, :length] = array[source, :, :length]

    def release(self, slot: int) -> None:
        """Return the pages of a slot to the system; their content is never read again."""
        for past in self._pasts:
            size = self._length * past.bytes_per_token
            self._discard(past.name, slot * size, (slot + 1) * size)

    def trim(self, slot: int, length: int) -> None:
        """Return the pages of a slot behind its first `length` tokens to the system."""
        for past in self._pasts:
            token = past.width * int(past.dtype.itemsize)
            for head in range(slot * past.heads, (slot + 1) * past.heads):
                start = head * self._length
                end = (start + self._length) * token
                self._discard(past.name, (start + length) * token, end)

    def _discard(self, name: str, start: int, end: int) -> None:
        """Return the whole pages between two bytes; those at the ends may hold other tokens."""
        if self._device != CPU or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._maps[name].madvise(mmap.MADV_DONTNEED, first, last - first)


def _pages(size: int) -> mmap.mmap:
    """Return zeroed memory; private, since only private pages can be returned to the system."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
