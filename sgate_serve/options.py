"""Fields of options dataclasses, and their command-line flags."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, *, is_secret: bool = False) -> Any:
    """Return a dataclass field with a default and a help text; secrets are left out of the repr."""
    return field(default=default, repr=not is_secret, metadata={"help": text})


def required(text: str) -> Any:
    """Return a dataclass field without a default, with a help text."""
    return field(metadata={"help": text})


def flag_of(field_name: str) -> str:
    """Return the flag of a field: max_model_len → --max-model-len."""
    return "--" + field_name.replace("_", "-")
