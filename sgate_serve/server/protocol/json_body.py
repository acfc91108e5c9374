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

# Members whose values are JSON schemas, in which null is a value like any other.
SCHEMAS = frozenset({"schema", "json", "parameters", "input_schema"})
# Possessive, and matching also what is unterminated: linear in any text.
STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
# Only an escape can write half a surrogate pair, as UTF-8 has none.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(content: bytes) -> Any:
    """Return the JSON value of a body without null members; raise RequestError for any other.

    In schemas and inputs of tools nulls are kept.
    """
    return _without_nulls(_parsed(content, "the body"), MAX_DEPTH)


def read_schema(text: str, param: str) -> Any:
    """Return the JSON value of a string in a body; raise RequestError naming `param` for others."""
    try:
        return _without_nulls(_parsed(text.encode(), f"`{param}`"), MAX_DEPTH, in_schema=True)
    except RequestError as error:
        error.param = param
        raise


def _parsed(content: bytes, source: str) -> Any:
    """Return the JSON value of `source`, as messages name it."""
    _check_size(content, source)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source} is not JSON: it has a byte that is not UTF-8 at {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise RequestError(f"{source} is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # of an integer of thousands of digits
        raise RequestError(f"{source} cannot be read: {cut(str(error))}") from error
    except RecursionError as error:
        raise _too_deep() from error
    if SURROGATE.search(content):
        _check_unicode(value, source)
    return value


def _check_size(content: bytes, source: str) -> None:
    """Refuse what would be too many objects of Python, before any of them is made."""
    structure = STRING.sub(b"", content)
    num_members = structure.count(b":")
    if num_members > MAX_MEMBERS:
        raise RequestError(
            f"the objects of {source} have {num_members} members; at most {MAX_MEMBERS} are read"
        )
    num_values = structure.count(b",") + structure.count(b"[") + structure.count(b"{")
    if num_values > MAX_VALUES:
        raise RequestError(
            f"{source} has about {num_values} values; at most {MAX_VALUES} are read, so send fewer "
            "in one call"
        )


def _check_unicode(value: Any, source: str) -> None:
    """Refuse lone surrogates, which UTF-8 and tokenizers cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{source} has {error.object[error.start]!r}, half of a surrogate pair; send whole "
            "characters"
        ) from error


def _without_nulls(value: Any, depth: int, *, in_schema: bool = False) -> Any:
    """Return the value without null members except in schemas, at any depth up to `depth`."""
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        raise _too_deep()
    if isinstance(value, list):
        return [
            _without_nulls(item, depth - 1, in_schema=in_schema)
            if isinstance(item, dict | list)
            else item
            for item in value
        ]
    return {
        name: _without_nulls(own, depth - 1, in_schema=in_schema or _keeps_nulls(name, own))
        for name, own in value.items()
        if in_schema or own is not None
    }


def _keeps_nulls(name: str, value: Any) -> bool:
    """Say whether a member is a schema, or the input of a called tool."""
    return name in SCHEMAS or (name == "input" and isinstance(value, dict))


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested too deeply; at most {MAX_DEPTH} levels are read")
