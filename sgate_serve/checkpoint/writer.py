"""Writes model folders all or nothing, tensor by tensor.

Files are staged in a hidden folder inside the target and moved into place at the end, the weights
index last, so its presence means that the folder is complete. Later changes replace whole files.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sgate_serve.checkpoint.tensor_files import DTYPE_NAMES, DTYPES, INDEX_FILE, SINGLE_FILE, Array
from sgate_serve.errors import CheckpointError, OutputError, SystemFailure, writing

STAGING_DIR = ".sgate-incomplete"


@dataclass(frozen=True)
class TensorHeader:
    """The header entry of a tensor that is yet to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class FolderWriter:
    """Files of one model folder, staged inside it until `commit` moves them into place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.staging = folder, folder / STAGING_DIR
        self.last: list[str] = []

    def path(self, name: str) -> Path:
        """Return the path to write the file `name` to; the name may have slashes."""
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self.path(name).write_text(text, encoding="utf-8")

    def write_weights(
        self, headers: list[TensorHeader], arrays: Iterable[Array], shard_bytes: int
    ) -> None:
        """Stream `arrays`, in the order of `headers`, into shards of at most `shard_bytes`.

        Peak memory is one array. Asserts that every array matches its header.
        """
        shards = list(divide_into_shards(headers, shard_bytes))
        stream = iter(arrays)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE_FILE
            if len(shards) > 1:
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_tensors(self.path(name), shard, stream, {"format": "pt"})
            weight_map |= {header.name: name for header in shard}
        if len(shards) == 1:
            self.last = [SINGLE_FILE]
            return
        total = sum(header.num_bytes for header in headers)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        self.write_json(INDEX_FILE, index)
        self.last = [INDEX_FILE]

    def commit(self) -> None:
        """Move every staged file into place, the weights index (or only shard) last."""
        names = [str(p.relative_to(self.staging)) for p in self.staging.rglob("*") if p.is_file()]
        for name in sorted(names, key=lambda name: (name in self.last, name)):
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.staging / name).replace(target)
        shutil.rmtree(self.staging)


def write_tensors(
    path: Path,
    headers: list[TensorHeader],
    arrays: Iterable[Array],
    metadata: Mapping[str, str],
) -> None:
    """Stream `arrays`, in the order of `headers`, into one safetensors file.

    No more of `arrays` is consumed than there are headers. Peak memory is one array.
    """
    with path.open("wb") as file:
        file.write(file_header(headers, metadata))
        for header, array in zip(headers, arrays, strict=False):
            assert array.shape == header.shape, (header, array.shape)
            assert DTYPE_NAMES[array.dtype] == header.dtype, (header, array.dtype)
            file.write(np.ascontiguousarray(array).view(np.uint8).data)


def file_header(headers: list[TensorHeader], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a safetensors file; the tensors follow without gaps."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for header in headers:
        span = [offset, offset + header.num_bytes]
        entries[header.name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": span,
        }
        offset = span[1]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def replace_text(path: Path, text: str) -> None:
    """Write a text file of an existing folder whole or not at all.

    A link, such as those of the hub's cache, is replaced; the file that it leads to stays as it is.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[FolderWriter]:
    """Write a new folder all or nothing.

    Raises CheckpointError if `folder` is a file or not empty; what a killed run left staged in it
    does not count. Raises OutputError naming it if the disk is full or a permission is missing. On
    any error the staged files are removed.
    """
    check_unused(folder)
    existed = folder.exists()
    writer = FolderWriter(folder)
    shutil.rmtree(writer.staging, ignore_errors=True)
    with writing(folder):
        writer.staging.mkdir(parents=True)
        try:
            yield writer
            writer.commit()
        except BaseException:
            shutil.rmtree(writer.staging, ignore_errors=True)
            if not existed and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
            raise


def check_unused(folder: Path) -> None:
    """Raise CheckpointError if `folder` is a file, or holds more than a killed run left staged."""
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; give a folder that does not exist yet")
        if folder.exists() and {path.name for path in folder.iterdir()} - {STAGING_DIR}:
            raise CheckpointError(f"{folder} is not empty; give a new folder")


def check_writable(folder: Path) -> None:
    """Raise OutputError naming `folder` unless it can be made, if need be, and written to.

    The trial is removed again, and takes place in a temporary folder, as other processes may try
    the same.
    """
    try:
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        with TemporaryDirectory(dir=parent) as trial:
            (Path(trial) / folder.relative_to(parent)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = SystemFailure.of(error)
        if failure is None:
            raise
        raise OutputError(replace(failure, path=str(folder)).line()) from error


def divide_into_shards(
    headers: list[TensorHeader], shard_bytes: int
) -> Iterator[list[TensorHeader]]:
    """Yield runs of headers of at most `shard_bytes`; a larger tensor gets its own shard."""
    shard: list[TensorHeader] = []
    size = 0
    for header in headers:
        if shard and size + header.num_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(header)
        size += header.num_bytes
    yield shard
