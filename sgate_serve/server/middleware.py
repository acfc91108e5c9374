"""ASGI middleware: the API key and the limit on body sizes.

Plain ASGI, because Starlette's BaseHTTPMiddleware would hide that a client hung up.
"""

import secrets

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.errors import RequestError
from sgate_serve.server.error_responses import error_response
from sgate_serve.server.paths import HEALTH_PATH


class ApiKey:
    """Requires `Authorization: Bearer KEY` on every path but /health."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == HEALTH_PATH or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
            status=401,
            code="invalid_api_key",
        )
        await error_response(error, {"www-authenticate": "Bearer"})(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, self._expected)


class BodyLimit:
    """Refuses bodies over a limit before reading them whole, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await error_response(self._refusal())(scope, receive, send)
            return
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                # The only exception that the framework passes on while it reads a body.
                raise HTTPException(413, self._reason())
            return message

        await self._app(scope, receive_limited, send)

    def _reason(self) -> str:
        return f"the body is over {self._max_bytes} bytes, this server's limit; send a smaller one"

    def _refusal(self) -> RequestError:
        return RequestError(self._reason(), status=413)
