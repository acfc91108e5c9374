"""Fields of options dataclasses, and their command-line flags."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, *, group: str | None = None, is_secret: bool = False) -> Any:
    """Return a dataclass field with a default and a help text; secrets are left out of the repr.

    `--help` lists the fields of a group together, under its name.
    """
    return field(default=default, repr=not is_secret, metadata={"help": text, "group": group})


def required(text: str, *, group: str | None = None) -> Any:
    """Return a dataclass field without a default, with a help text."""
    return field(metadata={"help": text, "group": group})


def flag_of(field_name: str) -> str:
    """Return the flag of a field: max_model_len → --max-model-len."""
    return "--" + field_name.replace("_", "-")
