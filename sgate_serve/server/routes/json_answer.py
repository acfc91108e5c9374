"""JSON responses that are written off the event loop."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from fastapi.responses import Response

CONTAINERS = (dict, list, tuple)
# As deep as the log-probabilities of a token.
MAX_DEPTH = 5


async def json_answer(content: Callable[[], dict[str, Any]]) -> Response:
    """Return the response with what `content` returns; both are made in a thread."""
    return Response(
        await asyncio.to_thread(lambda: json_bytes(content())), media_type="application/json"
    )


def json_bytes(value: Any) -> bytes:
    """Write a value in pieces.

    `json.dumps` keeps the interpreter's lock to its end, which for a thousand embeddings or choices
    is seconds.
    """
    return "".join(_pieces(value, MAX_DEPTH)).encode()


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """Yield JSON, that of containers that hold others member by member, down to some depth."""
    if not depth or not _holds_others(value):
        yield json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return
    is_object = isinstance(value, dict)
    members = value.items() if is_object else ((None, item) for item in value)
    for number, (name, member) in enumerate(members):
        yield "," if number else ("{" if is_object else "[")
        if is_object:
            yield f"{json.dumps(name, ensure_ascii=False)}:"
        yield from _pieces(member, depth - 1)
    yield "}" if is_object else "]"


def _holds_others(value: Any) -> bool:
    """Say whether a dictionary has containers, or a list ends in one."""
    if isinstance(value, dict):
        return any(isinstance(member, CONTAINERS) for member in value.values())
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[-1], CONTAINERS)
