"""GGUF files for llama.cpp, written tensor by tensor with the `gguf` package."""

from converters.to_gguf.storage import STORAGES
from converters.to_gguf.tensors import FileModel
from converters.to_gguf.writer import GGUF_FILE, check_model, write_gguf

__all__ = ["GGUF_FILE", "STORAGES", "FileModel", "check_model", "write_gguf"]
