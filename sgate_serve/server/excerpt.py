"""Values of clients as error messages and the log show them: never longer than one glance."""

from reprlib import Repr
from typing import Any

MAX_SHOWN = 60

# Reads no more of a long value than can be shown.
_REPR = Repr()
_REPR.maxlevel = 4
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 4 * MAX_SHOWN
_REPR.maxlist = _REPR.maxdict = MAX_SHOWN


def excerpt(value: Any) -> str:
    """Return a value as Python writes it, cut to MAX_SHOWN characters."""
    return cut(_REPR.repr(value))


def cut(text: str, length: int = MAX_SHOWN) -> str:
    """Return the beginning of a text, with an ellipsis if there is more."""
    return text if len(text) <= length else f"{text[:length]}…"
