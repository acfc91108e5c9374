"""The stored parts of a converted folder against what the conversion of its base would write.

Tensors, `config.json`, the files next to them and the ONNX graph are compared exactly, one tensor
or weight at a time: peak memory is about twice the largest matrix, and for the graph of a decoder
with integers the model in int8.
"""

import filecmp
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from converters.masked import MaskedCheckpoint
from converters.model_card import CARD_FILE
from converters.quantize import stored_tensors
from converters.rewrite import Rewriter
from converters.stacking import file_name
from converters.to_gguf import GGUF_FILE
from converters.to_hf import written_config
from converters.to_onnx.comparison import first_difference
from sgate_serve.architecture.family import BASE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.companions import companion_names, copy_companions
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, DTYPE_NAMES, INDEX_FILE
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.engines.table import ONNX
from sgate_serve.environment import EXTRAS, check_installed
from sgate_serve.errors import CheckpointError, writing
from sgate_serve.loaders.graph_cache import graph_precision, has_onnx, onnx_folder
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR, WEIGHTS_FILE
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.sizes import SIZES_FILE
from sgate_serve.verify.certificate import CERTIFICATE_FILE

# Compared in other ways, or read by people only.
OWN_FILES = frozenset({CONFIG_FILE, PLAN_FILE, SIZES_FILE, CERTIFICATE_FILE, CARD_FILE, INDEX_FILE})
OWN_FILES |= {GGUF_FILE, *(f"{ONNX_DIR}/{name}" for name in (GRAPH_FILE, WEIGHTS_FILE))}


@dataclass(frozen=True)
class StoredParts:
    """The first difference of each part in words, None if there is none.

    `other_files` are those that no conversion writes and nothing of ours reads.
    """

    tensor: str | None = None
    config: str | None = None
    file: str | None = None
    other_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphComparison:
    """The ONNX graph of a folder, or of its engine's cache; both are None if there is none."""

    is_equal: bool | None = None
    difference: str | None = None


def compare_stored_parts(masked: MaskedCheckpoint, plan: Plan, out: Checkpoint) -> StoredParts:
    """Compare the tensors, the config and the other files of `out` with what the plan gives."""
    tensor = first_different_tensor(masked, plan, out)
    config = written_config(masked, plan, out.is_int8)
    with TemporaryDirectory() as root, writing(Path(root), "set TMPDIR to another folder"):
        writer = FolderWriter(Path(root))
        copy_companions(masked.base.folder, writer, masked.spec.task, config)
        expected = _files_in(writer.staging)
        file = next(_different_files(writer.staging, expected, out.folder), None)
        file = file or gguf_difference(masked, plan, out)
    weights = {stored.file.name for info in out.tensors.values() for stored in info.in_files}
    others = _files_in(out.folder) - expected - weights - OWN_FILES
    return StoredParts(
        tensor=None if tensor is None else describe_tensor(out.spec, tensor),
        config=next(_different_keys(out.stored_config, config, ""), None),
        file=file,
        other_files=tuple(sorted(others)),
    )


def first_different_tensor(masked: MaskedCheckpoint, plan: Plan, out: Checkpoint) -> str | None:
    """Return the first tensor that differs from the plan's rewriting, is missing, or is too many.

    Names in the files count: transformers looks tensors up by them.
    """
    headers, arrays = stored_tensors(masked, plan, out.is_int8)
    small, written_name = pruned_spec(plan, masked.spec), masked.base.written_name
    for header, array in zip(headers, arrays, strict=True):
        info = out.tensors.get(header.name)
        if info is None:
            return header.name
        if [each.name for each in info.in_files] != [written_name(file_name(header.name, small))]:
            return header.name
        stored = info.read()
        if array.shape != stored.shape or DTYPE_NAMES[array.dtype] != DTYPE_NAMES[stored.dtype]:
            return header.name
        if np.ascontiguousarray(array).tobytes() != stored.tobytes():
            return header.name
    names = {header.name for header in headers}
    return next((name for name in sorted(out.tensors) if name not in names), None)


def gguf_difference(masked: MaskedCheckpoint, plan: Plan, out: Checkpoint) -> str | None:
    """Say how the GGUF file of a folder differs from the plan's; None if it does not, or is none.

    Raises CheckpointError if the package that reads it is not installed.
    """
    path = out.folder / GGUF_FILE
    if not path.is_file():
        return None
    check_installed(f"{path} is compared too, which needs", EXTRAS["gguf"], "gguf", CheckpointError)
    from converters.to_gguf.tensors import FileModel
    from converters.to_gguf.writer import first_difference, stored_type

    storage, rewriter = stored_type(path), Rewriter(masked, plan)
    if storage is None:
        return f"{GGUF_FILE} is not a GGUF file of a type that conversions write"
    model = FileModel.of(rewriter.small, storage, rewriter.tensor)
    different = first_difference(model, masked.base.folder, path)
    if different is None:
        return None
    return f"{GGUF_FILE}: {different} is not what the conversion of this base writes"


def describe_tensor(spec: ModelSpec, tensor: str) -> str:
    """Return the place of a differing tensor: its layer, or outside the layers."""
    for index in range(len(spec.layers)):
        if tensor.startswith(f"{spec.family.layer_name(index)}."):
            return f"first differing layer: {index} (tensor {tensor})"
    return f"outside the layers: tensor {tensor}"


def compare_graph(out: Checkpoint, engine: str) -> GraphComparison:
    """Compare the folder's ONNX graph, or the one that the onnx engine caches, with its tensors.

    A graph that does not exist yet is built for that engine.
    """
    if engine != ONNX and not has_onnx(out):
        return GraphComparison()
    folder = out.folder / ONNX_DIR if has_onnx(out) else onnx_folder(out)
    found = first_difference(out, folder, graph_precision(out))
    if found is None:
        return GraphComparison(True)
    remedy = f"convert the model again, or remove {folder}"
    return GraphComparison(False, f"{folder / GRAPH_FILE}: {found}; {remedy}")


def _different_keys(found: Any, expected: Any, path: str) -> Iterator[str]:
    """Yield where two JSON values differ, in words."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            at = f"{path}.{key}" if path else key
            if key not in expected:
                yield f"{CONFIG_FILE} has {at}, which the conversion of this base does not write"
            elif key not in found:
                yield f"{CONFIG_FILE} lacks {at}, which is {brief(expected[key])} in a conversion"
            else:
                yield from _different_keys(found[key], expected[key], at)
    elif found != expected or type(found) is not type(expected):
        written = f"the conversion of this base writes {brief(expected)}"
        yield f"{CONFIG_FILE}: {path} is {brief(found)}, and {written}"


def _different_files(source: Path, expected: set[str], folder: Path) -> Iterator[str]:
    """Yield the files of tokenizer, templates and settings that are not as in `source`."""
    for name in sorted(expected):
        if not (folder / name).is_file():
            yield f"{name} is missing; convert the base again"
        elif not filecmp.cmp(source / name, folder / name, shallow=False):
            yield f"{name} is not the one that the conversion of this base writes"
    # The files of sentence-transformers matter to any task: they would pool a classifier's states.
    for name in sorted({*companion_names(folder, BASE)} - expected):
        yield f"{name} is there, and the conversion of this base does not write it; remove it"


def _files_in(folder: Path) -> set[str]:
    """Return the files of a folder by relative path, without hidden ones."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(file) for file in files if not any(part.startswith(".") for part in file.parts)}
