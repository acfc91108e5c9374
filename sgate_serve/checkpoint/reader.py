"""Model folders on disk, checked against their config and read tensor by tensor.

Tensors are memory-mapped from safetensors files. Pickle is never read.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sgate_serve.architecture.family import ATTENTION
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.text_part import text_part
from sgate_serve.architecture.wholes import Whole
from sgate_serve.checkpoint.fitting import fit, further_layers, is_unused
from sgate_serve.checkpoint.identity import digest_of, fingerprint_of
from sgate_serve.checkpoint.int8 import (
    CONFIG_KEY,
    SCALE,
    check_scale,
    check_weight,
    int8_weights,
    is_int8,
    scale_shapes,
)
from sgate_serve.checkpoint.location import find_folder
from sgate_serve.checkpoint.missing import why_missing
from sgate_serve.checkpoint.mxfp4 import NOTE, is_mxfp4, is_packed_name, with_packed_stacks
from sgate_serve.checkpoint.names import canonical_names, left_out, text_tensors
from sgate_serve.checkpoint.other_layouts import describe_folder
from sgate_serve.checkpoint.ragged import Normalize, normalize_config
from sgate_serve.checkpoint.ragged.puzzle import Puzzle
from sgate_serve.checkpoint.side_files import check_plain_weights, check_side_files
from sgate_serve.checkpoint.stacks import part_in_words
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, FLOAT_DTYPES, Array, TensorInfo
from sgate_serve.checkpoint.weights_files import read_headers
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose headers have been read and checked; tensors are read one at a time.

    `tensors` are keyed by the names that a model with a head gives them; each keeps the name that
    it has in its file. `config` describes the tensors. It differs from config.json
    (`stored_config`) if another tool stored layers of uneven width, which `layout` then says in
    words, if a head is not tied that should be, if experts are in 4 bits (`is_packed`), which read
    as bf16, or if the folder holds a `whole`, of which this is the text part. In an int8 folder the
    linears inside the blocks are int8 with scales.
    """

    folder: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    stored_config: Mapping[str, Any]
    layout: str | None = None
    is_int8: bool = False
    is_packed: bool = False
    whole: Whole | None = None

    @classmethod
    def open(cls, location: str | Path) -> "Checkpoint":
        """Open a local folder or a hub id.

        Raises CheckpointError for anything missing, truncated, mistyped or of another family.
        """
        folder = find_folder(location)
        source = folder / CONFIG_FILE
        if not source.is_file():
            raise CheckpointError(f"{source} is missing: {describe_folder(folder)}")
        stored = read_json(source)
        check_side_files(folder, stored)
        puzzle = Puzzle.of(stored, str(source))
        own = stored if puzzle is None else puzzle.stock
        packed = is_mxfp4(own, str(source))
        stock = {key: value for key, value in own.items() if not packed or key != CONFIG_KEY}
        quantized = is_int8(stock, str(source))
        stored_tensors, notes = _read_tensors(folder, packed)
        part = text_part(stock, str(source))
        notes += left_out(stored_tensors, part.whole)
        if not quantized:
            check_plain_weights(stored_tensors, folder)
        tensors = canonical_names(text_tensors(stored_tensors, part), part.config)
        normalize: Normalize = normalize_config if puzzle is None else puzzle.normalized
        config, layout = normalize(part.config, tensors, part.source)
        fitted = fit(config, ModelSpec.from_config(config, part.source), tensors)
        checkpoint = cls(
            folder,
            fitted.config,
            fitted.spec,
            fitted.tensors,
            stored,
            layout=layout,
            is_int8=quantized,
            is_packed=packed,
            whole=part.whole,
        )
        notes += [] if layout is None else [layout]
        for note in (*notes, *fitted.notes, *checkpoint.check()):
            _note(folder, note)
        return checkpoint

    def check(self) -> list[str]:
        """Return notes on tensors that the model does not use.

        Raises CheckpointError unless the files hold every tensor that the config implies, and no
        other inside the stack.
        """
        expected = self.spec.tensor_shapes() | (scale_shapes(self.spec) if self.is_int8 else {})
        for name, shape in expected.items():
            found = self.tensors.get(name)
            if found is None:
                raise CheckpointError(
                    f"{self.folder}: {self._in_files(name)} is missing: "
                    f"{why_missing(name, self.spec, self.tensors)}"
                )
            if found.shape != shape:
                raise CheckpointError(
                    f"{found.file}: tensor {name}{found.origin} has shape {list(found.shape)}, "
                    f"config.json implies {list(shape)}"
                )
            self._check_content(name, found)
        others = sorted(set(self.tensors) - set(expected))
        others = [name for name in others if not self._is_ignored(name)]
        num_further = further_layers(self.config, self.spec)
        for name in others:
            if not is_unused(name, self.spec, num_further):
                stray = self.tensors[name]
                raise CheckpointError(
                    f"{stray.file}: tensor {name}{stray.origin} is not part of family "
                    f"{self.spec.family.name} with this config.json"
                )
        return [_unused_note(others, self.spec)] if others else []

    def _in_files(self, name: str) -> str:
        """Return what the files would have of a tensor, in words: our own have no stacks."""
        is_own = self.stored_config.get("model_type") == SGATE_MODEL_TYPE
        return f"tensor {name}" if is_own else part_in_words(name, self.spec.family)

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
                f"{info.file}: tensor {name}{info.origin} is stored as {info.dtype}; "
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
        """Return the name that a tensor of the model has in this folder's files.

        A head keeps the name that it has there: other programs know no other. The text part of a
        whole is written as a model of its own.
        """
        if self.whole is not None:
            return name
        if name == f"{self.spec.family.head}.weight" and name in self.tensors:
            return self.tensors[name].name
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
                own = family.head_norms if block == ATTENTION else ()
                names |= {f"{family.layer_name(index)}.{name}" for name in own}
                names |= set(family.block_norms(index, block))
        return frozenset(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))

    def read(self, name: str) -> Array:
        return self.tensors[name].read()

    @property
    def is_stacked(self) -> bool:
        """Say whether the files hold all experts of a layer in one tensor."""
        return any(info.in_files != (info,) for info in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum(info.num_bytes for info in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """A quick sha256 over names, shapes, dtypes and the edges of every tensor."""
        return fingerprint_of(self.tensors)

    @cached_property
    def digest(self) -> str:
        """A sha256 over the config and all bytes of every tensor.

        Files are read once and the result is remembered until they change.
        """
        return digest_of(self.stored_config, self.tensors)


def _read_tensors(folder: Path, is_packed: bool) -> tuple[Mapping[str, TensorInfo], list[str]]:
    """Return the tensors in the files, those in 4 bits as stacks, and a note if there are such."""
    headers = read_headers(folder)
    if not is_packed:
        return headers, []
    notes = [NOTE] if any(map(is_packed_name, headers)) else []
    return with_packed_stacks(headers), notes


def _unused_note(names: list[str], spec: ModelSpec) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"a {spec.head.model_class} does not use {names[0]}{more}; they are left out"


@lru_cache
def _note(folder: Path, note: str) -> None:
    """Say once how a folder is read; a command may open it several times."""
    logger.info("%s: %s", folder, note)
