"""The files of a tokenizer, merged as transformers 5 merges them.

`tokenizer_config.json` comes first. Only if it has no `added_tokens_decoder` are
`special_tokens_map.json`, `added_tokens.json` and the added tokens of `tokenizer.json` read, and
the map then wins over the config.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import (
    FLAG,
    OBJECT,
    TEXT,
    TEXTS,
    Kind,
    check_fields,
    is_whole,
    read_json,
)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

# Any of these makes a folder one with a tokenizer; only the first is read here.
VOCABULARY_FILES = (
    TOKENIZER_FILE,
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
)

# transformers' order, in which missing tokens get their ids.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
DECODER = "added_tokens_decoder"
# Not a key of any file.
OWN = "own tokens"

Token = str | AddedToken

SIDE = Kind('"left" or "right"', lambda value: value in ("left", "right"))
# transformers writes 1e30, as an integer, for "no limit".
LENGTH = Kind("a positive number", lambda value: type(value) in (int, float) and value > 0)
SETTINGS: Mapping[str, Kind] = {
    "tokenizer_class": TEXT,
    "model_input_names": TEXTS,
    "model_max_length": LENGTH,
    "truncation_side": SIDE,
    DECODER: OBJECT,
    **dict.fromkeys(
        (
            "add_prefix_space",
            "clean_up_tokenization_spaces",
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            "do_lower_case",
            "fix_mistral_regex",
            "legacy",
            "split_special_tokens",
            "strip_accents",
            "tokenize_chinese_chars",
        ),
        FLAG,
    ),
}
# Arguments that transformers passes on by position, and other versions of tokenizer.json.
REFUSED = ("init_inputs", "fast_tokenizer_files")


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens that the files name; None where they say that there is none.

    `named` has those with a name (`bos_token`, or a model's own `image_token`), `extra` the others.
    """

    named: Mapping[str, Token | None]
    extra: tuple[Token, ...]


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of `tokenizer.json`, the settings, and the tokens to add by the files' ids."""

    folder: Path
    serialized: Mapping[str, Any]
    settings: Mapping[str, Any]
    special: SpecialTokens
    added: Mapping[int, AddedToken]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFiles":
        """Read a folder that has a `tokenizer.json`.

        Raises CheckpointError naming a malformed file, or a setting that is refused.
        """
        serialized = read_json(folder / TOKENIZER_FILE)
        settings = read_settings(folder)
        check_fields(settings, SETTINGS, str(folder / TOKENIZER_CONFIG_FILE), CheckpointError)
        for key in REFUSED:
            if settings.get(key) not in (None, [], [TOKENIZER_FILE]):
                raise CheckpointError(
                    f"{folder / TOKENIZER_CONFIG_FILE}: {key} is not supported; remove it, or "
                    "save the tokenizer again with transformers"
                )
        try:
            merged, added = _merged(folder, serialized, settings)
            special = _special(merged, {str(token): token for _, token in added})
            return cls(folder, serialized, merged, special, dict(added))
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{folder}: the special or added tokens in {TOKENIZER_CONFIG_FILE}, "
                f"{SPECIAL_TOKENS_FILE} or {ADDED_TOKENS_FILE} are malformed ({error}); restore "
                "the files of the base model"
            ) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the contents of `tokenizer_config.json`, empty if there is none."""
    return _read_optional(folder / TOKENIZER_CONFIG_FILE)


def token_texts(value: Any) -> Any:
    """Return settings in which each token that is an object is its text."""
    if isinstance(value, Mapping):
        if "content" in value:
            return value["content"]
        return {key: token_texts(item) for key, item in value.items()}
    return [token_texts(item) for item in value] if isinstance(value, list) else value


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _merged(
    folder: Path, serialized: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[int, AddedToken]]]:
    """Return the settings with the special tokens of all files, and the tokens to add.

    A model's own named tokens that the config states as strings win over the map, under OWN.
    """
    settings = dict(config)
    if OLD_EXTRA in settings and not settings.get(EXTRA):
        settings[EXTRA] = settings.pop(OLD_EXTRA)
    stated = [key for key in settings if _is_own(key) and isinstance(settings[key], str)]
    own = {key: settings.pop(key) for key in stated}
    if isinstance(settings.get(EXTRA), dict):
        own |= settings.pop(EXTRA)
    settings[OWN] = own
    if DECODER in settings:
        return settings, [(int(key), _token(value)) for key, value in settings[DECODER].items()]
    for key, value in _read_optional(folder / SPECIAL_TOKENS_FILE).items():
        if key == EXTRA and isinstance(value, list):
            known = list(settings.get(EXTRA) or [])
            settings[key] = known + [token for token in value if token not in known]
        elif isinstance(value, dict) and key != EXTRA:
            settings[key] = _token({**value, "special": True})
        else:
            settings[key] = value
    if isinstance(settings.get(EXTRA), dict):
        own |= settings.pop(EXTRA)
    return settings, _legacy_added(folder, serialized, settings)


def _legacy_added(
    folder: Path, serialized: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[tuple[int, AddedToken]]:
    """Return the added tokens of added_tokens.json and then tokenizer.json: the last of an id wins.

    One that loses its id still gives its flags to a special token of the same text.
    """
    # A token that tokenizer_config.json has as an object is not among them, as in transformers.
    special = {str(settings[key]) for key in NAMED if settings.get(key)}
    special |= {str(token) for token in settings.get(EXTRA) or ()}
    added: list[tuple[int, AddedToken]] = []
    for text, index in _read_optional(folder / ADDED_TOKENS_FILE).items():
        if not is_whole(index):
            raise ValueError(f"{text!r} has the id {index!r}")
        is_special = text in special
        token = AddedToken(text, normalized=not is_special, special=is_special)
        added.append((index, token))
    return [*added, *((int(one["id"]), _token(one)) for one in serialized.get("added_tokens", ()))]


def _special(settings: Mapping[str, Any], flags: Mapping[str, AddedToken]) -> SpecialTokens:
    """Return the special tokens, with the flags of the added tokens of the same text."""
    named: dict[str, Token | None] = {}
    for key in NAMED:
        if key in settings:
            token = None if settings[key] is None else _token(settings[key])
            named[key] = token if token is None else flags.get(str(token), token)
    for key, value in settings.items():
        if _is_own(key) and isinstance(value, str | dict | AddedToken):
            named[key] = _token(value)
    named |= {key: _token(value) for key, value in settings[OWN].items()}
    extra = settings.get(EXTRA, settings.get(OLD_EXTRA)) or ()
    if not isinstance(extra, list | tuple):
        raise TypeError(f"{EXTRA} must be a list or an object")
    return SpecialTokens(named, tuple(map(_token, extra)))


def _is_own(key: str) -> bool:
    return key.endswith("_token") and key not in NAMED


def _token(value: Any) -> Any:
    """Return a token of a file: a string as it is, an object as an AddedToken with its flags."""
    if isinstance(value, str | AddedToken):
        return value
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{flag: value[flag] for flag in flags if flag in value})


def serialized_text(contents: Mapping[str, Any]) -> str:
    """Return contents of a tokenizer.json in the form that the tokenizers library parses."""
    return json.dumps(contents, ensure_ascii=False)
