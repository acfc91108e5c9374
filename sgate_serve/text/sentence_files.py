"""The files of sentence-transformers in a model folder: modules, settings and prompts.

Every key of them is applied, provably without effect, or refused by name; docs/format.md lists
them. They count only if there is a `modules.json`, as in sentence-transformers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from typing import Any

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import FLAG, OBJECT, SIZE, TEXT, check_fields, read_json
from sgate_serve.text.tokenizer_files import SETTINGS, TOKENIZER_CONFIG_FILE, read_settings

MODULES_FILE = "modules.json"
MODEL_FILE = "config_sentence_transformers.json"
# The settings of the Transformer, under one of the names that releases gave to the file.
SETTINGS_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FOLDER_FILES = (MODULES_FILE, *SETTINGS_FILES, MODEL_FILE)
CLASSES = "sentence_transformers."
MODEL_CLASS = "SentenceTransformer"
MAX_LENGTH = "max_seq_length"

# Keys of the settings that change nothing here, and the only values with which others do not.
IDLE = {"backend", "document_length", "query_expansion", "query_length", "unpad_inputs"}
NEUTRAL: Mapping[str, Any] = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
    "tokenizer_name_or_path": None,
    "transformer_task": "feature-extraction",
}
# Arguments for transformers, under old names and new, of which these change no result.
ARGUMENTS = ("model", "tokenizer", "processor", "config")
IDLE_ARGUMENTS = {
    "attn_implementation",
    "dtype",
    "padding_side",
    "torch_dtype",
    "trust_remote_code",
}


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: the name of its class, and its folder in the model folder.

    The class of another package has its full name.
    """

    kind: str
    path: str


@dataclass(frozen=True)
class TextSettings:
    """What sentence-transformers does to a text: prompt first, lower case, longest length.

    `prompts` are what callers may choose instead of the default `prompt`, by name.
    """

    prompt: str = ""
    lower_case: bool = False
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "TextSettings":
        """Read the settings; raise CheckpointError naming a file and key that is refused."""
        path = next((folder / name for name in SETTINGS_FILES if (folder / name).exists()), None)
        settings = {} if path is None else read_json(path)
        if path is not None:
            kinds = {MAX_LENGTH: SIZE, "do_lower_case": FLAG}
            check_fields(settings, kinds, str(path), CheckpointError)
            _check_settings(path, settings)
        max_tokens = settings.get(MAX_LENGTH)
        if max_tokens is None:
            max_tokens = _longest(folder)
        prompt, prompts = _read_prompts(folder)
        return cls(prompt, bool(settings.get("do_lower_case")), max_tokens, prompts)


def read_modules(folder: Path) -> list[Module]:
    """Return the entries of modules.json, none if there is no such file.

    Raises CheckpointError for a malformed file, or a path that leaves the folder.
    """
    path = folder / MODULES_FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [Module(_kind(entry["type"]), entry["path"]) for entry in entries]
        places = [PurePosixPath(module.path) for module in modules]
    except (ValueError, OSError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a list of modules with type and path: {error!r}; restore "
            "it, or remove it"
        ) from error
    outside = next((place for place in places if place.is_absolute() or ".." in place.parts), None)
    if outside is not None:
        raise CheckpointError(f"{path}: the path {str(outside)!r} leaves the folder; correct it")
    return modules


def module_files(folder: Path) -> list[str]:
    """Return the files of sentence-transformers that embeddings need, relative to the folder."""
    names = [name for name in FOLDER_FILES if (folder / name).is_file()]
    for module in read_modules(folder):
        if PurePosixPath(module.path).parts:
            inside = sorted((folder / module.path).glob("*"))
            kept = (file for file in inside if file.suffix in (".json", ".safetensors"))
            names += [str(file.relative_to(folder)) for file in kept]
    return names


def refused(path: Path, key: str, value: Any) -> CheckpointError:
    """Return the error for a setting that is not applied."""
    return CheckpointError(
        f"{path}: {key} is {brief(value)}, which this release does not apply; remove {key} if the "
        "embeddings do not depend on it"
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2] if name.startswith(CLASSES) else name


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key in (MAX_LENGTH, "do_lower_case") or key in IDLE:
            continue
        if key.removesuffix("_args").removesuffix("_kwargs") in ARGUMENTS:
            check_fields(settings, {key: OBJECT}, str(path), CheckpointError)
            for name in (value or {}).keys() - IDLE_ARGUMENTS:
                raise refused(path, f"{key}.{name}", value[name])
        elif key not in NEUTRAL or (value is not None and value != NEUTRAL[key]):
            raise refused(path, key, value)


def _longest(folder: Path) -> int | None:
    """Return the tokenizer's `model_max_length`, None if there is none or it means "no limit"."""
    kinds = {"model_max_length": SETTINGS["model_max_length"]}
    settings = read_settings(folder)
    check_fields(settings, kinds, str(folder / TOKENIZER_CONFIG_FILE), CheckpointError)
    length = settings.get("model_max_length")
    return None if length is None or math.isinf(length) else int(length)


def _read_prompts(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the prompt that comes before a text unless a caller chooses one, and all by name."""
    path = folder / MODEL_FILE
    if not path.exists():
        return "", {}
    config = read_json(path)
    kinds = {"prompts": OBJECT, "default_prompt_name": TEXT, "model_type": TEXT}
    check_fields(config, kinds, str(path), CheckpointError)
    if config.get("model_type") not in (None, MODEL_CLASS):
        raise CheckpointError(
            f"{path}: model_type is {config['model_type']!r}; this release supports {MODEL_CLASS}"
        )
    prompts = {"query": None, "document": None, **(config.get("prompts") or {})}
    check_fields(prompts, dict.fromkeys(prompts, TEXT), f"{path}: prompts", CheckpointError)
    name = config.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise CheckpointError(
            f"{path}: default_prompt_name is {name!r}, but the prompts are "
            f"{', '.join(map(repr, prompts))}; correct it, or remove it"
        )
    named = {key: prompt for key, prompt in prompts.items() if prompt is not None}
    return named.get(name, ""), named
