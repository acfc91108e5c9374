"""Pooling of hidden states into one embedding, as sentence-transformers' files describe it.

`modules.json` lists a Transformer in the model folder itself, and a Pooling and optionally a
Normalize in folders of their own. Other modules are refused by name.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import SIZE, check_fields, read_json

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

MODULES_FILE = "modules.json"
# The other files of sentence-transformers in the model folder itself.
SETTINGS_FILE = "sentence_bert_config.json"
FOLDER_FILES = (MODULES_FILE, SETTINGS_FILE, "config_sentence_transformers.json")
TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"
MEAN, CLS, MAX = "mean", "cls", "max"
# Old files have a switch for each pooling mode.
SWITCH_PREFIX = "pooling_mode_"
SWITCHES = {"mean_tokens": MEAN, "cls_token": CLS, "max_tokens": MAX}


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: the name of its class, and its folder in the model folder."""

    kind: str
    path: str


@dataclass(frozen=True)
class Pooling:
    """Turns states into an embedding; with `normalize`, it is then scaled to length 1.

    `max_tokens` is the length at which sentence-transformers truncates texts.
    """

    mode: str = MEAN
    normalize: bool = False
    max_tokens: int | None = None

    @classmethod
    def of(cls, folder: Path) -> "Pooling":
        """Read the pooling of a model folder; the default is the mean, which is logged.

        Raises CheckpointError for an unreadable file, or an unknown module or mode.
        """
        modules = read_modules(folder)
        if not modules:
            logger.info("%s has no %s: embeddings are the mean of all states", folder, MODULES_FILE)
            return cls()
        kinds = [module.kind for module in modules]
        expected = [TRANSFORMER, POOLING, NORMALIZE]
        if kinds not in (expected, expected[:2]) or modules[0].path not in ("", "."):
            found = ", ".join(f"{module.kind} in {module.path!r}" for module in modules)
            raise CheckpointError(
                f"{folder / MODULES_FILE}: found {found}; this release supports a Transformer in "
                "the folder itself, a Pooling and a Normalize"
            )
        mode = _mode(folder / modules[1].path / "config.json")
        pooling = cls(mode, len(modules) > 2, _max_tokens(folder / SETTINGS_FILE))
        logger.info("%s: %s pooling, normalize=%s", folder, mode, pooling.normalize)
        return pooling

    def apply(self, states: Floats) -> Floats:
        """Return the embedding [hidden] of one text's states [s, hidden]."""
        if self.mode == CLS:
            return np.array(states[0])
        pooled: Floats = states.max(axis=0) if self.mode == MAX else states.mean(axis=0)
        return pooled


def read_modules(folder: Path) -> list[Module]:
    """Return the entries of modules.json, none if there is no such file.

    Raises CheckpointError for a malformed file, or a path that leaves the folder.
    """
    path = folder / MODULES_FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [Module(entry["type"].rpartition(".")[2], entry["path"]) for entry in entries]
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


def _mode(path: Path) -> str:
    """Return the pooling mode in a Pooling's config.json, of the new format or the old."""
    config = read_json(path)
    stated = config.get("pooling_mode")
    modes = [stated] if stated is not None else _switched_on(config)
    if len(modes) != 1 or modes[0] not in (MEAN, CLS, MAX):
        raise CheckpointError(
            f"{path}: pooling mode {' and '.join(map(str, modes)) or 'unknown'} is not supported; "
            f"this release supports {MEAN}, {CLS} and {MAX}"
        )
    return str(modes[0])


def _switched_on(config: dict[str, Any]) -> list[str]:
    on = [key for key, value in config.items() if key.startswith(SWITCH_PREFIX) and value is True]
    names = [key.removeprefix(SWITCH_PREFIX) for key in on]
    return [SWITCHES.get(name, name) for name in names]


def _max_tokens(path: Path) -> int | None:
    if not path.exists():
        return None
    settings = read_json(path)
    check_fields(settings, {"max_seq_length": SIZE}, str(path), CheckpointError)
    found: int | None = settings.get("max_seq_length")
    return found
