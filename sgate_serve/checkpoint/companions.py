"""The files next to the weights: tokenizer, chat template, generation and embedding settings."""

import shutil
from pathlib import Path

from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.text.pooling import module_files

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


def copy_companions(source: Path, writer: FolderWriter, task: str) -> None:
    """Copy those files that exist, unchanged, for a model of that task.

    A classifier does not get the settings of sentence-transformers: they would pool its states.
    """
    modules = () if task == CLASSIFICATION else module_files(source)
    for name in (*COMPANION_FILES, *modules):
        if (source / name).is_file():
            shutil.copyfile(source / name, writer.path(name))
