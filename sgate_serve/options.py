"""Fields of options dataclasses that carry the help text of their command-line flag."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and the help of its flag."""
    return field(default=default, metadata={"help": text})
