"""Model folders on disk: find them, read safetensors by header and by tensor.

Files are mapped, and every header is checked before any tensor is used. Never pickle.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.spec import ModelSpec

Array = NDArray[Any]

# https://github.com/huggingface/safetensors#format: the dtypes that a supported model stores.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FINGERPRINT_EDGE = 4096
MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its file, byte range in that file, dtype name and shape."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Array:
        """Return a read-only view of the tensor, mapped from the file."""
        if self.start == self.end:
            return np.empty(self.shape, DTYPES[self.dtype])
        raw = np.memmap(self.file, np.uint8, "r", self.start, self.end - self.start)
        return np.asarray(raw).view(DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose headers have been read and checked; tensors are read one at a time."""

    folder: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, location: str | Path) -> "Checkpoint":
        """Open a local folder or a hub id.

        Raises CheckpointError for anything missing, truncated, mistyped or of another family.
        """
        folder = find_folder(location)
        config = read_json(folder / "config.json")
        spec = ModelSpec.from_config(config, str(folder / "config.json"))
        checkpoint = cls(folder, config, spec, read_headers(folder))
        checkpoint.check()
        return checkpoint

    def check(self) -> None:
        """Raise CheckpointError unless the files hold just the tensors that the config implies."""
        expected = self.spec.tensor_shapes()
        for name, shape in expected.items():
            found = self.tensors.get(name)
            if found is None:
                raise CheckpointError(
                    f"{self.folder}: tensor {name} is missing; is a shard of the checkpoint lost?"
                )
            if found.shape != shape:
                raise CheckpointError(
                    f"{found.file}: tensor {name} has shape {list(found.shape)}, config.json "
                    f"implies {list(shape)}"
                )
            if found.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{found.file}: tensor {name} is stored as {found.dtype}; "
                    "give the unquantised checkpoint (F32, F16 or BF16)"
                )
        for name in sorted(set(self.tensors) - set(expected)):
            if not self._is_ignored(name):
                raise CheckpointError(
                    f"{self.tensors[name].file}: tensor {name} is no part of family "
                    f"{self.spec.family.name} with this config.json"
                )

    def _is_ignored(self, name: str) -> bool:
        family = self.spec.family
        return name.endswith(family.ignored_suffixes) or name == f"{family.head}.weight"

    def read(self, name: str) -> Array:
        return self.tensors[name].read()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum(info.end - info.start for info in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over sorted (name, shape, dtype, first and last 4 KiB of each tensor)."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(json.dumps([name, list(info.shape), info.dtype]).encode())
            with info.file.open("rb") as file:
                file.seek(info.start)
                digest.update(file.read(min(FINGERPRINT_EDGE, info.end - info.start)))
                file.seek(max(info.start, info.end - FINGERPRINT_EDGE))
                digest.update(file.read(info.end - file.tell()))
        return digest.hexdigest()


def find_folder(location: str | Path) -> Path:
    """Return a local folder: the path itself, or a snapshot of the hub repository of that name."""
    path = Path(location)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the model folder that holds it")
    name = str(location)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder here, and the hub did not answer with it ({reason})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError naming the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} a model folder?") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Read every safetensors header that the folder's index, or its single file, names."""
    index_path, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index_path}: weight_map is missing or empty")
        files = [folder / Path(str(name)).name for name in sorted(set(weight_map.values()))]
    elif single.exists():
        files = [single]
    else:
        raise CheckpointError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "sgate reads safetensors checkpoints only"
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(read_header(file))
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check one safetensors header: 8 bytes of length, JSON, then the data."""
    if not file.exists():
        raise CheckpointError(f"{file} is missing, though the weights index names it")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file}: no safetensors header; download or copy it again")
        try:
            header = json.loads(stream.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            infos = {k: _tensor_info(k, v, file, 8 + length) for k, v in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file}: malformed safetensors header ({error})") from error
    for info in infos.values():
        if info.end > size:
            raise CheckpointError(
                f"{file} is truncated: tensor {info.name} ends at byte {info.end} of {size}; "
                "download or copy it again"
            )
    return infos


def _tensor_info(name: str, entry: Mapping[str, Any], file: Path, base: int) -> TensorInfo:
    dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {dtype}, which is not supported")
    if start < 0 or min(shape, default=0) < 0:
        raise ValueError(f"tensor {name} has a negative size or offset")
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {name}: {end - start} bytes do not hold {shape} of {dtype}")
    return TensorInfo(name, file, dtype, shape, base + start, base + end)
