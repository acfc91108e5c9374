"""Model folders on disk: find them, read safetensors by header and by tensor.

Files are mapped, and every header is checked before any tensor is used. Never pickle.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.families import FAMILIES
from sgate_serve.family import ATTENTION, BLOCKS, MLP, Family
from sgate_serve.fields import MAX_SIZE, is_whole
from sgate_serve.ragged import normalize_config
from sgate_serve.spec import IN_INDEX, OUT_INDEX, ModelSpec

logger = logging.getLogger(__name__)

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
MAX_NAME = 255
MAX_RANK = 8


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
    """A model folder whose headers have been read and checked; tensors are read one at a time.

    Tensors are known by the names that a model with a head gives them; each keeps its own name in
    the file. `config` says what the tensors hold. It is not the file's where `layout` says, in
    words, how another tool stored layers of uneven width.
    """

    folder: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    layout: str | None = None

    @classmethod
    def open(cls, location: str | Path) -> "Checkpoint":
        """Open a local folder or a hub id.

        Raises CheckpointError for anything missing, truncated, mistyped or of another family.
        """
        folder = find_folder(location)
        source = folder / "config.json"
        stored = read_json(source)
        tensors = canonical_names(read_headers(folder), stored)
        config, layout = normalize_config(stored, tensors, str(source))
        if layout is not None:
            logger.info("%s: %s", folder, layout)
        spec = ModelSpec.from_config(config, str(source))
        checkpoint = cls(folder, config, spec, tensors, layout)
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
            is_index = name.endswith((f".{IN_INDEX}", f".{OUT_INDEX}"))
            if is_index:
                self._check_index(name, found)
            elif found.dtype not in FLOAT_DTYPES:
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

    def _check_index(self, name: str, info: TensorInfo) -> None:
        """Raise CheckpointError unless an index vector is int64, sorted, unique and in range."""
        module, _, side = name.rpartition(".")
        whole = replace(self.spec, lowered={})
        layer = whole.module_names()[module]
        size = whole.module_shape(layer, module)[side == IN_INDEX]
        if info.dtype != "I64":
            raise CheckpointError(f"{info.file}: tensor {name} is {info.dtype}, expected I64")
        index = info.read()
        if (np.diff(index) <= 0).any() or not 0 <= index[0] <= index[-1] < size:
            raise CheckpointError(
                f"{info.file}: tensor {name} must hold sorted, unique positions below {size}; "
                "convert the base checkpoint again"
            )

    def written_name(self, name: str) -> str:
        """Return the name that a tensor of the model has in this folder's files."""
        prefix = f"{self.spec.family.prefix}."
        has_prefix = any(info.name.startswith(prefix) for info in self.tensors.values())
        return name if has_prefix else name.removeprefix(prefix)

    def _is_ignored(self, name: str) -> bool:
        family = self.spec.family
        if name.endswith(family.ignored_suffixes) or name == f"{family.head}.weight":
            return True
        return self.layout is not None and name in self._idle_norms

    @cached_property
    def _idle_norms(self) -> frozenset[str]:
        """Norms of blocks that are gone; other tools leave them, and nothing reads them."""
        family, names = self.spec.family, set[str]()
        for index, layer in enumerate(self.spec.layers):
            for block in BLOCKS:
                if layer.mlp_units if block == MLP else layer.num_heads:
                    continue
                own = [n[block] for n in (family.norms, family.post_norms) if block in n]
                own += family.head_norms if block == ATTENTION else ()
                names |= {f"{family.layer_name(index)}.{name}" for name in own}
        return frozenset(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))

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
        for info in sorted(self.tensors.values(), key=lambda info: info.name):
            digest.update(json.dumps([info.name, list(info.shape), info.dtype]).encode())
            with info.file.open("rb") as file:
                file.seek(info.start)
                digest.update(file.read(min(FINGERPRINT_EDGE, info.end - info.start)))
                file.seek(max(info.start, info.end - FINGERPRINT_EDGE))
                digest.update(file.read(info.end - file.tell()))
        return digest.hexdigest()


def canonical_names(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Mapping[str, TensorInfo]:
    """Return the tensors by the names of a model with a head, whatever the files call them.

    Base models are saved without the prefix of the stack, old checkpoints with other endings. A
    config of no family of ours is somebody else's: its names stay.
    """
    sgate = config.get("sgate")
    name = sgate.get("family") if isinstance(sgate, Mapping) else config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return tensors
    prefix, found = f"{family.prefix}.", dict[str, TensorInfo]()
    stack = () if any(name.startswith(prefix) for name in tensors) else _stack_names(family)
    for name, info in tensors.items():
        ending = next((old for old in family.renames if name.endswith(old)), None)
        own = name if ending is None else name.removesuffix(ending) + family.renames[ending]
        own = f"{prefix}{own}" if own.startswith(stack) else own
        if own in found:
            raise CheckpointError(
                f"{info.file}: {name} and {found[own].name} are both {own}; keep one of them"
            )
        found[own] = info
    return found


def _stack_names(family: Family) -> tuple[str, ...]:
    """Return how the names of the stack's tensors start where the prefix is left out."""
    on_top = {name for task in family.tasks.values() for name in task.tensors}
    names = (family.layer.format(""), *family.outside, *on_top)
    prefix = f"{family.prefix}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))


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
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Read every safetensors header that the folder's index, or its single file, names."""
    index_path, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if index_path.exists():
        return _read_shards(index_path)
    if not single.exists():
        raise CheckpointError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "sgate reads safetensors checkpoints only"
        )
    return read_header(single)


def _read_shards(index_path: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not _is_name(shard):
            raise CheckpointError(
                f"{index_path}: tensor {name!r:.80} is in {shard!r:.80}; expected the name of a "
                "file beside the index"
            )
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_header(index_path.parent / shard)
        for name in sorted(found.keys() & tensors.keys()):
            raise CheckpointError(
                f"{index_path}: tensor {name} is in {tensors[name].file.name} and in {shard}; "
                "keep it in one of them"
            )
        tensors |= found
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"{index_path}: {shard} lacks tensor {name!r:.80}, which the index puts there; "
                "download or copy both again"
            )
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check one safetensors header: 8 bytes of length, JSON, then the data.

    Tensors must fill the data in turn, without gap or overlap, as the format demands.
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


def _is_name(text: str) -> bool:
    """Say whether a name from a file fits a file system and a line of a message."""
    return len(text) <= MAX_NAME and text.isprintable()


def _tensor_info(name: str, entry: Mapping[str, Any], file: Path, base: int) -> TensorInfo:
    if not _is_name(name):
        raise ValueError(f"tensor name {name!r:.80} is too long or holds control characters")
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{file}: tensor {name} has dtype {dtype!s:.40}, which is not supported"
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ValueError(f"tensor {name}: the shape is no list of at most {MAX_RANK} sizes")
    if not all(is_whole(size) for size in (*shape, start, end)):
        raise ValueError(f"tensor {name} has a negative size or offset, or one that is no integer")
    itemsize = DTYPES[dtype].itemsize
    if end - start != math.prod(shape) * itemsize:
        raise ValueError(f"tensor {name}: {end - start} bytes do not hold {shape} of {dtype}")
    if math.prod(size or 1 for size in shape) * itemsize > MAX_SIZE:
        raise ValueError(f"tensor {name} has sizes beyond any model")
    return TensorInfo(name, file, dtype, tuple(shape), base + start, base + end)
