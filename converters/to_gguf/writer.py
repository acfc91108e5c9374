"""Write a model as one GGUF file: metadata, tokenizer, then the tensors one at a time."""

import logging
import math
from pathlib import Path

import gguf

from converters.to_gguf.architecture import check_family
from converters.to_gguf.metadata import add_metadata
from converters.to_gguf.storage import element_type, encoded, encoded_shape
from converters.to_gguf.tensors import FileModel
from converters.to_gguf.vocabulary import Vocabulary
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.progress import activity, counted

logger = logging.getLogger(__name__)

# Relative to the model folder.
GGUF_FILE = "gguf/model.gguf"
NO_VOCABULARY = "no_vocab"


def check_model(spec: ModelSpec, folder: Path) -> None:
    """Raise SgateError, naming the obstacle, for a model or tokenizer that llama.cpp cannot run."""
    check_family(spec)
    Vocabulary.read(folder, spec.vocab_size)


def write_gguf(model: FileModel, folder: Path, path: Path) -> None:
    """Write the file, with the tokenizer of `folder`; peak memory is about the largest tensor."""
    writer = gguf.GGUFWriter(path, model.architecture.name)
    add_metadata(writer, model)
    vocabulary = Vocabulary.read(folder, model.spec.vocab_size)
    if vocabulary is None:
        writer.add_tokenizer_model(NO_VOCABULARY)
    else:
        vocabulary.add_to(writer)
    tensors = list(model.tensors())
    for tensor in tensors:
        shape, dtype = encoded_shape(tensor.shape, tensor.kind), element_type(tensor.kind)
        num_bytes = math.prod(shape) * dtype.itemsize
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, shape, dtype, num_bytes, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with activity("writing GGUF", is_brief=True):
            for tensor in counted(tensors, "tensor", len(tensors)):
                values = encoded(tensor.values(), tensor.kind, tensor.name)
                assert values.shape == encoded_shape(tensor.shape, tensor.kind), tensor.name
                writer.write_tensor_data(values)
    finally:
        writer.close()
