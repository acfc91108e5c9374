"""ASGI middleware: the API key, and the limits on the size and time of requests.

Plain ASGI, because Starlette's BaseHTTPMiddleware would hide that a client hung up.
"""

import asyncio
import secrets
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.errors import RequestError
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.error_responses import error_response
from sgate_serve.server.paths import OPEN_PATHS

# For all of a body; a slower client belongs behind a proxy that buffers requests.
BODY_SECONDS = 60.0
DRAIN_SECONDS = 3.0


class ApiKey:
    """Requires `Authorization: Bearer KEY` or `x-api-key: KEY`, save for /health and the page."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
            status=401,
            code="invalid_api_key",
        )
        headers = {"www-authenticate": "Bearer"}
        await error_response(error, headers, scope["path"])(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        # HTTP has schemes in any case.
        is_bearer = self._is_key(key.strip(b" ")) and scheme.lower() == b"bearer"
        return is_bearer or self._is_key(headers.get(b"x-api-key", b""))

    def _is_key(self, given: bytes) -> bool:
        return secrets.compare_digest(given, self._key)


class Deadline:
    """Ends calls that have no answer by the time that the server or its shutdown allows.

    The time counts from the first byte of the request. A response that has begun ends by itself,
    at `scope["state"]["deadline"]` in the loop's time, or never if that is None.
    """

    def __init__(self, app: ASGIApp, driver: EngineDriver) -> None:
        self._app = app
        self._driver = driver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        begin = state.setdefault("first_byte", asyncio.get_running_loop().time())
        state["deadline"] = self._driver.deadline(begin)
        limit = asyncio.timeout_at(state["deadline"])

        async def send_in_time(message: Message) -> None:
            if limit in self._driver.unanswered:
                if limit.expired():
                    return  # too late by a moment
                limit.reschedule(None)
                self._driver.unanswered.discard(limit)
            await send(message)

        try:
            async with limit:
                self._driver.unanswered.add(limit)
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not limit.expired():
                raise
            refusal = error_response(self._driver.overdue(), path=scope["path"])
            await refusal(scope, receive, send)
        finally:
            self._driver.unanswered.discard(limit)


class Drain:
    """Reads on for a moment before a request is refused whose body is still coming.

    A client that is cut off while it sends never sees the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = scope["type"] != "http" or not _has_body(Headers(scope=scope))

        async def receive_and_note() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def drain_and_send(message: Message) -> None:
            status = message.get("status")  # which only the start of a response has
            if status not in (None, HTTPStatus.REQUEST_TIMEOUT) and not is_whole:
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        while not is_whole:
                            await receive_and_note()
            await send(message)

        await self._app(scope, receive_and_note, drain_and_send)


def _has_body(headers: Headers) -> bool:
    """Say whether a body comes unasked; with `Expect`, a client waits to be told so."""
    is_announced = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return is_announced and "expect" not in headers


class BodyLimit:
    """Refuses bodies over a limit before reading them whole, with or without a Content-Length.

    A body must have come BODY_SECONDS after the first byte of its request.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await error_response(self._refusal(), path=scope["path"])(scope, receive, send)
            return
        num_bytes, end = 0, scope["state"]["first_byte"] + BODY_SECONDS
        is_whole = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else end):
                    message = await receive()
            except TimeoutError as error:
                raise RequestError(
                    f"the body did not come within {BODY_SECONDS:g} s", status=408
                ) from error
            is_whole = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, receive_limited, send)

    def _refusal(self) -> RequestError:
        return RequestError(
            f"the body is over {self._max_bytes} bytes, this server's limit; send a smaller one",
            status=413,
        )
