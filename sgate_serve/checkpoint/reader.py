"""Model folders on disk: finds them, checks them against their config, reads tensor by tensor.

Tensors are memory-mapped from safetensors files. Pickle is never read.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import ATTENTION, Family
from sgate_serve.architecture.sgate_config import stored_family
from sgate_serve.architecture.spec import IN_INDEX, OUT_INDEX, ModelSpec
from sgate_serve.checkpoint.int8 import (
    SCALE,
    check_scale,
    check_weight,
    int8_weights,
    is_int8,
    scale_shapes,
)
from sgate_serve.checkpoint.ragged import normalize_config
from sgate_serve.checkpoint.tensor_files import (
    FLOAT_DTYPES,
    Array,
    TensorInfo,
    read_headers,
)
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json

logger = logging.getLogger(__name__)


FINGERPRINT_EDGE = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose headers have been read and checked; tensors are read one at a time.

    `tensors` are keyed by the names that a model with a head gives them; each keeps the name that
    it has in its file. `config` describes the tensors. It differs from config.json if another tool
    stored layers of uneven width; `layout` then says in words how. In an int8 folder the linears
    inside the blocks are int8 with scales.
    """

    folder: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    layout: str | None = None
    is_int8: bool = False

    @classmethod
    def open(cls, location: str | Path) -> "Checkpoint":
        """Open a local folder or a hub id.

        Raises CheckpointError for anything missing, truncated, mistyped or of another family.
        """
        folder = find_folder(location)
        source = folder / "config.json"
        stored = read_json(source)
        quantized = is_int8(stored, str(source))
        tensors = canonical_names(read_headers(folder), stored)
        config, layout = normalize_config(stored, tensors, str(source))
        if layout is not None:
            logger.info("%s: %s", folder, layout)
        spec = ModelSpec.from_config(config, str(source))
        checkpoint = cls(folder, config, spec, tensors, layout, quantized)
        checkpoint.check()
        return checkpoint

    def check(self) -> None:
        """Raise CheckpointError unless the files hold exactly the tensors the config implies."""
        expected = self.spec.tensor_shapes() | (scale_shapes(self.spec) if self.is_int8 else {})
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
            self._check_content(name, found)
        for name in sorted(set(self.tensors) - set(expected)):
            if not self._is_ignored(name):
                raise CheckpointError(
                    f"{self.tensors[name].file}: tensor {name} is not part of family "
                    f"{self.spec.family.name} with this config.json"
                )

    def check_unquantized(self) -> None:
        """Raise CheckpointError for int8 weights: pruning and training need the floats."""
        if self.is_int8:
            raise CheckpointError(
                f"{self.folder} is quantized to int8; give the unquantized checkpoint"
            )

    def _check_content(self, name: str, info: TensorInfo) -> None:
        """Raise CheckpointError unless its dtype, and an index's or scale's values, are valid."""
        if name.endswith((f".{IN_INDEX}", f".{OUT_INDEX}")):
            self._check_index(name, info)
        elif name in self._int8_weights:
            check_weight(name, info)
        elif info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{info.file}: tensor {name} is stored as {info.dtype}; "
                "give the unquantized checkpoint (F32, F16 or BF16)"
            )
        elif name.endswith(f".{SCALE}"):
            check_scale(name, info)

    @cached_property
    def _int8_weights(self) -> frozenset[str]:
        return int8_weights(self.spec) if self.is_int8 else frozenset()

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
        """Norms of removed blocks: other tools leave them in the files, and nothing reads them."""
        family, names = self.spec.family, set[str]()
        for index, layer in enumerate(self.spec.layers):
            for block in layer.skipped_blocks:
                own = [n[block] for n in (family.norms, family.post_norms) if block in n]
                own += family.head_norms if block == ATTENTION else ()
                names |= {f"{family.layer_name(index)}.{name}" for name in own}
        return frozenset(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))

    def read(self, name: str) -> Array:
        return self.tensors[name].read()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum(info.num_bytes for info in self.tensors.values())

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

    Base models are saved without the prefix of the stack, old checkpoints with other endings. Names
    stay as they are if the config's family is not supported.
    """
    name = stored_family(config)
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
    """Return the beginnings of the stack's tensor names without the prefix."""
    on_top = {name for head in family.tasks.values() for name in head.tensors}
    names = (family.layer.format(""), *family.outside, *on_top)
    prefix = f"{family.prefix}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def find_folder(location: str | Path) -> Path:
    """Return a local folder: the path itself, or a snapshot of the hub repository it names."""
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
