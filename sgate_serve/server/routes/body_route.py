"""A route that reads, parses and validates its body off the event loop.

FastAPI parses and validates on the loop, where a long body stops every other call. Off the loop it
holds the interpreter's lock for a few hundredths of a second now and then, which would add up if
several were read at once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from sgate_serve.server.protocol.strict_body import NOT_AN_OBJECT, StrictBody, read_body

LONG_BODY_BYTES = 2**16
# One after the other.
LONG_BODIES = ThreadPoolExecutor(1, "long-bodies")


class BodyRoute(APIRoute):
    """Hands the finished body model to FastAPI, which documents it and passes it on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        kind: Any = self.body_field.field_info.annotation if self.body_field else None
        assert kind is None or issubclass(kind, StrictBody)

        async def read_and_handle(request: Request) -> Response:
            if kind is not None:
                content = await request.body()
                if not content or not _is_json(request):
                    raise NOT_AN_OBJECT
                pool = LONG_BODIES if len(content) > LONG_BODY_BYTES else None
                loop = asyncio.get_running_loop()
                body = await loop.run_in_executor(pool, read_body, content, kind)
                request = ReadRequest(request, body)
            return await handle(request)

        return read_and_handle


class ReadRequest(Request):
    """A request whose body has become a model."""

    def __init__(self, request: Request, body: StrictBody) -> None:
        super().__init__(request.scope, request.receive)
        self._model = body

    async def body(self) -> bytes:
        return b"{}"

    async def json(self) -> Any:
        return self._model


def _is_json(request: Request) -> bool:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    kind = header.get_content_type()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
