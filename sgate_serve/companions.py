"""The files beside the weights: tokenizer, chat template, generation and embedding settings."""

import shutil
from pathlib import Path

from sgate_serve.folder import FolderWriter
from sgate_serve.pooling import module_files

COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_companions(source: Path, writer: FolderWriter) -> None:
    """Copy what is there of them as it is."""
    for name in (*COMPANION_FILES, *module_files(source)):
        if (source / name).is_file():
            shutil.copyfile(source / name, writer.path(name))
