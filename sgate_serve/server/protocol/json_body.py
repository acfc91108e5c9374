"""Reads a JSON body within limits on its values, members and depth.

Parsing holds the interpreter's lock, which stops every thread of the server, and builds an object
for each value. Values are therefore counted in the bytes first.
"""

import json
import re
from typing import Any

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import cut

MAX_VALUES = 2**19
MAX_MEMBERS = 2**14
MAX_DEPTH = 32

# Possessive, and matching also what is unterminated: linear in any text.
STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
# Only an escape can write half a surrogate pair, as UTF-8 has none.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(content: bytes) -> Any:
    """Return the JSON value without null members of objects; raise RequestError for any other."""
    _check_size(content)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not JSON: it has a byte that is not UTF-8 at {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # of an integer of thousands of digits
        raise RequestError(f"the body cannot be read: {cut(str(error))}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if SURROGATE.search(content):
        _check_unicode(value)
    return _without_nulls(value, MAX_DEPTH)


def _check_size(content: bytes) -> None:
    """Refuse what would be too many objects of Python, before any of them is made."""
    structure = STRING.sub(b"", content)
    num_members = structure.count(b":")
    if num_members > MAX_MEMBERS:
        raise RequestError(
            f"the objects of the body have {num_members} members; at most {MAX_MEMBERS} are read"
        )
    num_values = structure.count(b",") + structure.count(b"[") + structure.count(b"{")
    if num_values > MAX_VALUES:
        raise RequestError(
            f"the body has about {num_values} values; at most {MAX_VALUES} are read, so send fewer "
            "in one call"
        )


def _check_unicode(value: Any) -> None:
    """Refuse lone surrogates, which UTF-8 and tokenizers cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the body has {error.object[error.start]!r}, half of a surrogate pair; send whole "
            "characters"
        ) from error


def _without_nulls(value: Any, depth: int) -> Any:
    """Return the value without null members, at any depth up to `depth`."""
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        raise _too_deep()
    if isinstance(value, list):
        return [
            _without_nulls(item, depth - 1) if isinstance(item, dict | list) else item
            for item in value
        ]
    members = value.items()
    return {name: _without_nulls(own, depth - 1) for name, own in members if own is not None}


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested too deeply; at most {MAX_DEPTH} levels are read")
