"""What wraps every request: its id and log line, the API key, the limit of the body.

Plain ASGI, because a wrapper that re-reads the response would hide a client that hangs up.
"""

import json
import logging
import secrets
from time import perf_counter
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.errors import RequestError
from sgate_serve.server.error_responses import as_request_error, error_response

logger = logging.getLogger(__name__)

HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
# Asked every few seconds by machines; their lines would drown the others.
QUIET_PATHS = frozenset({HEALTH_PATH, METRICS_PATH})
# nginx's status for a client that closed the connection; only ever logged.
CLIENT_CLOSED = 499


class RequestLog:
    """Gives each request an id, logs one line when it ends, and answers for bugs.

    The id is in `scope["state"]`, in the header `x-request-id` and in the log line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start = uuid4().hex, perf_counter()
        status: int | None = None
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception as error:
            logger.exception("request failed id=%s", request_id)
            if status is not None:  # the response has begun and can only be broken off
                raise
            refusal = as_request_error(error, Request(scope))
            await error_response(refusal)(scope, receive, send_with_id)
        finally:
            _log(scope, request_id, status or CLIENT_CLOSED, perf_counter() - start)


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    path = json.dumps(scope["path"])
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    milliseconds = seconds * 1000
    line = "request id=%s method=%s path=%s status=%d ms=%.1f"
    logger.log(level, line, request_id, scope["method"], path, status, milliseconds)


class ApiKey:
    """Asks for `Authorization: Bearer KEY` everywhere but at /health."""

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
    """Refuses bodies over a number of bytes, announced or not, before they are all read."""

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
                # The one class that the framework passes on while it reads a body.
                raise HTTPException(413, self._reason())
            return message

        await self._app(scope, receive_limited, send)

    def _reason(self) -> str:
        return f"the body is over {self._max_bytes} bytes, this server's limit; send less at once"

    def _refusal(self) -> RequestError:
        return RequestError(self._reason(), status=413)
