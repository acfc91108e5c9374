"""Write a model as one GGUF file: metadata, tokenizer, then the tensors one at a time.

A stored file is compared with the one that would be written, in the same steps.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np

from converters.to_gguf.architecture import check_family
from converters.to_gguf.metadata import add_metadata
from converters.to_gguf.notes import notes
from converters.to_gguf.storage import STORAGES, Storage, element_type, encoded, encoded_shape
from converters.to_gguf.tensors import FileModel, FileTensor
from converters.to_gguf.vocabulary import Vocabulary
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.progress import activity, counted

logger = logging.getLogger(__name__)

NO_VOCABULARY = "no_vocab"


def check_model(spec: ModelSpec, folder: Path) -> None:
    """Raise SgateError, naming the obstacle, for a model or tokenizer that llama.cpp cannot run."""
    check_family(spec)
    Vocabulary.read(folder, spec.vocab_size)


def write_gguf(model: FileModel, folder: Path, path: Path) -> None:
    """Write the file, with the tokenizer of `folder`; peak memory is about the largest tensor."""
    tensors = list(model.tensors())
    logger.info("%s: %s", path.name, "; ".join(notes(model)))
    writer = _begun(model, tensors, folder, path)
    try:
        with activity("writing GGUF", is_brief=True):
            for values in counted(_arrays(tensors), "tensor", len(tensors)):
                writer.write_tensor_data(values)
    finally:
        writer.close()


def _begun(
    model: FileModel, tensors: list[FileTensor], folder: Path, path: Path
) -> gguf.GGUFWriter:
    """Write all of a file that comes before the numbers."""
    writer = gguf.GGUFWriter(path, model.architecture.name)
    add_metadata(writer, model)
    vocabulary = Vocabulary.read(folder, model.spec.vocab_size)
    if vocabulary is None:
        writer.add_tokenizer_model(NO_VOCABULARY)
    else:
        vocabulary.add_to(writer)
    for tensor in tensors:
        shape, dtype = encoded_shape(tensor.shape, tensor.kind), element_type(tensor.kind)
        num_bytes = math.prod(shape) * dtype.itemsize
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, shape, dtype, num_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _arrays(tensors: list[FileTensor]) -> Iterator[Array]:
    for tensor in tensors:
        values = encoded(tensor.values(), tensor.kind, tensor.name)
        assert values.shape == encoded_shape(tensor.shape, tensor.kind), tensor.name
        yield values


def stored_type(path: Path) -> Storage | None:
    """Return the types of a stored file; None for types that are not written here, or no GGUF."""
    try:
        field = gguf.GGUFReader(path).fields["general.file_type"]
        kind = int(field.contents())
    except (ValueError, KeyError, IndexError, OSError):
        return None
    return next((each for each in STORAGES.values() if each.file_type == kind), None)


def first_difference(model: FileModel, folder: Path, path: Path) -> str | None:
    """Say where a stored file differs from the one that `write_gguf` would write; None if nowhere.

    Peak memory is about the largest tensor.
    """
    tensors = list(model.tensors())
    with TemporaryDirectory() as root:
        begun = Path(root) / path.name
        _begun(model, tensors, folder, begun).close()
        beginning = begun.read_bytes()
    stored, place = np.memmap(path, np.uint8, "r"), _aligned(len(beginning))
    if stored[: len(beginning)].tobytes() != beginning:
        return "its metadata, tokenizer or tensor names"
    for tensor, values in zip(tensors, _arrays(tensors), strict=True):
        if stored[place : place + values.nbytes].tobytes() != values.tobytes():
            return f"tensor {tensor.name}"
        place = _aligned(place + values.nbytes)
    return None if len(stored) == place else "its length"


def _aligned(place: int) -> int:
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT
    return -(-place // alignment) * alignment
