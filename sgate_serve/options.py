"""Fields of options dataclasses that carry the help text of their command-line flag."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, *, is_secret: bool = False) -> Any:
    """Return a dataclass field with a default and the help of its flag; secrets have no repr."""
    return field(default=default, repr=not is_secret, metadata={"help": text})
