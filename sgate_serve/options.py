"""Fields of options dataclasses and the command-line flags that they are."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, *, is_secret: bool = False) -> Any:
    """Return a dataclass field with a default and the help of its flag; secrets have no repr."""
    return field(default=default, repr=not is_secret, metadata={"help": text})


def required(text: str) -> Any:
    """Return a dataclass field without a default, with the help of its flag."""
    return field(metadata={"help": text})


def flag_of(field_name: str) -> str:
    """Return the flag of a field: max_model_len → --max-model-len."""
    return "--" + field_name.replace("_", "-")
