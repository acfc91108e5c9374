"""Reads users' JSON files and checks the types of their fields before anything uses them.

A field that is absent or null has its reader's default; one of a wrong type is refused by name.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from sgate_serve.errors import CheckpointError, SgateError

# Far above any model, and small enough that products of sizes stay cheap and printable.
MAX_SIZE = 2**40


@dataclass(frozen=True)
class Kind:
    """The values that a field may hold, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Say whether a JSON value is an integer from 0 to MAX_SIZE, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a number that fits a float, NaN and infinities included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= MAX_SIZE


def _is_positive(value: Any) -> bool:
    return is_number(value) and 0 < value < math.inf


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set) and all(isinstance(text, str) for text in value)


WHOLE = Kind("a whole number", is_whole)
SIZE = Kind("a whole number of at least 1", lambda value: is_whole(value) and value > 0)
# transformers takes negative ids, which mean that there is no such token.
TOKEN_ID = Kind(
    "a token id, or -1 for none",
    lambda value: isinstance(value, int) and is_whole(value if value >= 0 else -value),
)
NUMBER = Kind("a number", is_number)
POSITIVE = Kind("a positive number", _is_positive)
NUMBERS = Kind(
    "a list of positive numbers",
    lambda value: isinstance(value, list | tuple) and all(_is_positive(item) for item in value),
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
TEXTS = Kind("a list of strings", _is_texts)
INDICES = Kind(
    "a list of whole numbers",
    lambda value: isinstance(value, list | tuple) and all(is_whole(index) for index in value),
)
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))


def check_fields(
    values: Mapping[Any, Any], kinds: Mapping[str, Kind], source: str, error: type[SgateError]
) -> None:
    """Raise `error` naming `source` and the field unless every known one is null or of its kind."""
    for key, kind in kinds.items():
        value = values.get(key)
        if value is not None and not kind.accepts(value):
            raise error(f"{source}: {key} must be {kind.words}, found {brief(value)}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError naming the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} a model folder?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value
