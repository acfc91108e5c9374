"""JSON responses that are written off the event loop."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi.responses import Response


async def json_answer(content: Callable[[], dict[str, Any]]) -> Response:
    """Return the response with what `content` returns; both are made in a thread."""
    return Response(
        await asyncio.to_thread(lambda: _written(content())), media_type="application/json"
    )


def _written(content: dict[str, Any]) -> bytes:
    """Write an object, the items of its lists one by one.

    `json.dumps` keeps the interpreter's lock to its end, which for a thousand embeddings or choices
    is seconds.
    """
    members = (f"{_dumps(name)}:{_member(value)}" for name, value in content.items())
    return f"{{{','.join(members)}}}".encode()


def _member(value: Any) -> str:
    return f"[{','.join(map(_dumps, value))}]" if isinstance(value, list) else _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
