"""The files next to the weights: tokenizer, chat template, generation and embedding settings."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.architecture.wholes import WHOLES
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.json_fields import read_json
from sgate_serve.text.chat_template import TEMPLATE_DIR, TEMPLATE_FILE
from sgate_serve.text.sentence_files import module_files
from sgate_serve.text.tokenizer_class import chosen_class
from sgate_serve.text.tokenizer_files import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILES,
    read_settings,
)

# What AutoProcessor loads for a folder, in a key of tokenizer_config.json.
PROCESSOR_CLASS = "processor_class"
COMPANION_FILES = (
    "generation_config.json",
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    *VOCABULARY_FILES,
    "merges.txt",
    TEMPLATE_FILE,
    "chat_template.json",
)


def copy_companions(
    source: Path, writer: FolderWriter, task: str, config: Mapping[str, Any]
) -> None:
    """Copy those files that exist, for a model of that task with that config.json.

    They stay as they are, except for the class in tokenizer_config.json (`restated_settings`).
    """
    for name in companion_names(source, task):
        shutil.copyfile(source / name, writer.path(name))
    settings = restated_settings(source, config)
    if settings is not None:
        writer.write_json(TOKENIZER_CONFIG_FILE, settings)


def companion_names(source: Path, task: str) -> list[str]:
    """Return the files of a folder to copy for a model of that task, relative to the folder.

    A classifier does not get the settings of sentence-transformers: they would pool its states.
    """
    modules = () if task == CLASSIFICATION else module_files(source)
    templates = sorted((source / TEMPLATE_DIR).glob("*.jinja"))
    further = [f"{TEMPLATE_DIR}/{path.name}" for path in templates]
    return [name for name in (*COMPANION_FILES, *further, *modules) if (source / name).is_file()]


def restated_settings(source: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the tokenizer_config.json to write beside `config`; None to copy that of `source`.

    AutoTokenizer partly goes by the model type, which it does not know in a converted folder
    (`model_type: "sgate"`), and which is another one in the text part of a whole. So the class that
    it chooses for the base is stated where it would choose another one. The text part has no
    processor of images.
    """
    if not any((source / name).is_file() for name in VOCABULARY_FILES):
        return None
    settings, path = read_settings(source), source / CONFIG_FILE
    stored = read_json(path) if path.is_file() else config
    meant = chosen_class(stored, settings)
    is_stock = config.get("model_type") != SGATE_MODEL_TYPE
    known = config if is_stock else {"tokenizer_class": config.get("tokenizer_class")}
    own = dict(settings)
    if str(stored.get("model_type")) in WHOLES:
        own.pop(PROCESSOR_CLASS, None)
    if meant != chosen_class(known, settings):
        own["tokenizer_class"] = meant
    return None if own == settings else own
