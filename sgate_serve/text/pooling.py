"""Pooling of hidden states into one embedding, as sentence-transformers' files describe it.

`modules.json` lists a Transformer in the model folder itself, and a Pooling and optionally a
Normalize in folders of their own. Other modules are refused by name.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import FLAG, SIZE, Kind, check_fields, read_json
from sgate_serve.text.sentence_files import MODULES_FILE, TextSettings, read_modules, refused

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"
MEAN, CLS, MAX = "mean", "cls", "max"
# Old files have a switch for each pooling mode.
SWITCH_PREFIX = "pooling_mode_"
SWITCHES = {"mean_tokens": MEAN, "cls_token": CLS, "max_tokens": MAX}
WIDTHS = ("embedding_dimension", "word_embedding_dimension")
INCLUDE_PROMPT = "include_prompt"
# vLLM's names in config.json for embeddings of several widths.
IS_MATRYOSHKA, MATRYOSHKA_WIDTHS = "is_matryoshka", "matryoshka_dimensions"
SIZES = Kind(
    "a list of whole numbers of at least 1",
    lambda value: isinstance(value, list) and all(map(SIZE.accepts, value)),
)
# What a Normalize normalizes: the embedding, not the states.
EMBEDDING = "sentence_embedding"


@dataclass(frozen=True)
class Pooling:
    """Turns states into an embedding; with `normalize`, it is then scaled to length 1.

    The text has `prompt` in front, is read in lower case with `lower_case`, and is truncated by
    sentence-transformers to `max_tokens`. A model that was trained so (Matryoshka) has good
    embeddings of other `widths` too, which are the first numbers; without any, every width is good.
    A caller may choose one of the `prompts` by name instead.
    """

    mode: str = MEAN
    normalize: bool = False
    max_tokens: int | None = None
    prompt: str = ""
    lower_case: bool = False
    widths: tuple[int, ...] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Pooling":
        """Read the pooling of a model folder; the default is the mean, which is logged.

        Raises CheckpointError for an unreadable file, an unknown module or mode, or a setting that
        is not applied.
        """
        modules = read_modules(folder)
        if not modules:
            logger.info("%s has no %s: embeddings are the mean of all states", folder, MODULES_FILE)
            return cls(widths=_widths(folder))
        kinds = [module.kind for module in modules]
        expected = [TRANSFORMER, POOLING, NORMALIZE]
        if kinds not in (expected, expected[:2]) or modules[0].path not in ("", "."):
            found = ", ".join(f"{module.kind} in {module.path!r}" for module in modules)
            raise CheckpointError(
                f"{folder / MODULES_FILE}: found {found}; this release supports a Transformer in "
                "the folder itself, a Pooling and a Normalize"
            )
        text = TextSettings.of(folder)
        mode = _mode(folder / modules[1].path / "config.json", text.prompt)
        for module in modules[2:]:
            _check_normalize(folder / module.path / "config.json")
        pooling = cls(
            mode,
            len(modules) > 2,
            text.max_tokens,
            text.prompt,
            text.lower_case,
            _widths(folder),
            text.prompts,
        )
        logger.info(
            "%s: %s pooling, normalize=%s, prompt=%r, lower_case=%s",
            folder,
            mode,
            pooling.normalize,
            pooling.prompt,
            pooling.lower_case,
        )
        return pooling

    def apply(self, states: Floats) -> Floats:
        """Return the embedding [hidden] of one text's states [s, hidden]."""
        if self.mode == CLS:
            return np.array(states[0])
        pooled: Floats = states.max(axis=0) if self.mode == MAX else states.mean(axis=0)
        return pooled


def _mode(path: Path, prompt: str) -> str:
    """Return the pooling mode in a Pooling's config.json, of the new format or the old."""
    config = read_json(path)
    check_fields(config, {INCLUDE_PROMPT: FLAG}, str(path), CheckpointError)
    for key, value in config.items():
        is_known = key in ("pooling_mode", INCLUDE_PROMPT, *WIDTHS) or key.startswith(SWITCH_PREFIX)
        if not is_known or (key == INCLUDE_PROMPT and prompt and value is False):
            raise refused(path, key, value)
    stated = config.get("pooling_mode")
    modes = _switched_on(config) if stated is None else [stated]
    if isinstance(stated, list):
        modes = stated
    if not modes and config.keys() & set(WIDTHS):
        modes = [MEAN]
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


def _check_normalize(path: Path) -> None:
    """Refuse a Normalize of something other than the embedding; most have no config."""
    config = read_json(path) if path.exists() else {}
    for key, value in config.items():
        if key not in ("module_input_name", "module_output_name") or value not in (None, EMBEDDING):
            raise refused(path, key, value)


def _widths(folder: Path) -> tuple[int, ...] | None:
    """Return the widths that config.json names: None for none but its own, () for all."""
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    kinds = {IS_MATRYOSHKA: FLAG, MATRYOSHKA_WIDTHS: SIZES}
    check_fields(config, kinds, str(path), CheckpointError)
    widths = tuple(config.get(MATRYOSHKA_WIDTHS) or ())
    return widths if widths or config.get(IS_MATRYOSHKA) else None
