"""Fields of options dataclasses, and the names and values of their command-line flags."""

import argparse
import math
import re
from dataclasses import field
from typing import Any

# Counts, sizes and seeds; libraries take no larger ones.
LARGEST = 2**31 - 1
PERCENT, DECIMAL_COMMA = re.compile(r"(\d+(?:\.\d+)?)\s*%"), re.compile(r"\d+,\d+")


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


def whole(text: str) -> int:
    """Read a whole number from 0; raise ArgumentTypeError for anything else, or one too large."""
    if not re.fullmatch(r"\s*\d+\s*", text) or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 0 to {LARGEST}")
    return int(text)


def number(text: str) -> float:
    """Read a finite number; raise ArgumentTypeError with what a percentage or comma may mean."""
    try:
        if "_" in text or not math.isfinite(value := float(text)):
            raise ValueError
        return value
    except ValueError as error:
        percent, comma = PERCENT.fullmatch(text), DECIMAL_COMMA.fullmatch(text)
        meant = f"{float(percent[1]) / 100:g}" if percent else text.replace(",", ".")
        hint = f"; did you mean {meant}?" if percent or comma else ""
        raise argparse.ArgumentTypeError(f"{text!r}: give a number{hint}") from error


def check_at_least(name: str, value: int | None, least: int, error: type[Exception]) -> None:
    """Raise `error` naming the flag of a field if its value is below the least that has a use."""
    if value is not None and value < least:
        raise error(f"{flag_of(name)} {value}: give a whole number of at least {least}")
