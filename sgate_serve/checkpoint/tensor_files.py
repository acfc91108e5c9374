"""Safetensors files: every header entry is checked before any tensor is used.

https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import MAX_SIZE, is_whole

Array = NDArray[Any]

# What headers may name; a supported model stores fewer.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The floating-point types, by the names that precisions have elsewhere.
PRECISION_NAMES: Mapping[str, str] = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
FLOAT_DTYPES = frozenset(PRECISION_NAMES)

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 * 2**20
MAX_NAME = 255
MAX_RANK = 8


@dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor: its file, byte range in that file, dtype name and shape."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start

    @property
    def in_files(self) -> "tuple[TensorInfo, ...]":
        """What the files have: this tensor, the one that it is a part of, or several."""
        return (self,)

    @property
    def origin(self) -> str:
        """For messages, where the files have it if they have no tensor of its name."""
        names = [stored.name for stored in self.in_files]
        return "" if names == [self.name] else f" (in {' and '.join(names)})"

    def read(self) -> Array:
        """Return a read-only view of the tensor, memory-mapped from the file."""
        if self.start == self.end:
            return np.empty(self.shape, DTYPES[self.dtype])
        raw = np.memmap(self.file, np.uint8, "r", self.start, self.end - self.start)
        return np.asarray(raw).view(DTYPES[self.dtype]).reshape(self.shape)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check one safetensors header: 8 bytes of length, JSON, then the data.

    The format requires that tensors fill the data one after the other, without gap or overlap.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: no safetensors header; download or copy it again")
            header = json.loads(stream.read(length))
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        infos = {k: _tensor_info(k, v, file, 8 + length) for k, v in entries.items()}
        _check_offsets(infos, 8 + length, size)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing, though the weights index names it") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: malformed safetensors header ({error})") from error
    return infos


def _check_offsets(infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    for info in sorted(infos.values(), key=lambda info: (info.start, info.end)):
        if info.end > size:
            raise CheckpointError(
                f"{info.file} is truncated: tensor {info.name} ends at byte {info.end} of {size}; "
                "download or copy it again"
            )
        if info.start != start:
            what = "overlaps the one before" if info.start < start else "leaves a gap before it"
            raise ValueError(f"tensor {info.name} {what}")
        start = info.end
    if start != size:
        raise ValueError(f"{size - start} bytes belong to no tensor")


def is_name(text: str) -> bool:
    """Say whether a name is short and printable enough for a file system and a message."""
    return len(text) <= MAX_NAME and text.isprintable()


def _tensor_info(name: str, entry: Mapping[str, Any], file: Path, base: int) -> TensorInfo:
    if not is_name(name):
        raise ValueError(f"tensor name {name!r:.80} is too long or holds control characters")
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{file}: tensor {name} has dtype {dtype!s:.40}, which is not supported; give the "
            "unquantized checkpoint"
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ValueError(f"tensor {name}: the shape is not a list of at most {MAX_RANK} sizes")
    if not all(is_whole(size) for size in (*shape, start, end)):
        raise ValueError(f"tensor {name}: a size or offset is negative or is not an integer")
    itemsize = DTYPES[dtype].itemsize
    if end - start != math.prod(shape) * itemsize:
        raise ValueError(f"tensor {name}: {end - start} bytes do not hold {shape} of {dtype}")
    if math.prod(size or 1 for size in shape) * itemsize > MAX_SIZE:
        raise ValueError(f"tensor {name} has sizes beyond any model")
    return TensorInfo(name, file, dtype, tuple(shape), base + start, base + end)
