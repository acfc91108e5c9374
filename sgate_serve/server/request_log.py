"""The id of each request and its log line, as text or as a JSON object."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.server.error_responses import as_request_error, error_response
from sgate_serve.server.paths import QUIET_PATHS

logger = logging.getLogger(__name__)

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# nginx's status for a client that closed the connection; only ever logged.
CLIENT_CLOSED = 499
# An id that comes in goes into a header and into every log line: no spaces, quotes or line breaks.
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


class RequestLog:
    """Gives each request an id, logs one line when it ends, and answers for bugs.

    The id is the client's `x-request-id` if it is sane, else a new one; it is in
    `scope["state"]`, in the answer's header `x-request-id` and in the log line. What an endpoint
    puts into `scope["state"]["log"]` is logged too; no text of prompts or answers ever is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start = _request_id(scope), perf_counter()
        status: int | None = None
        facts: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, log=facts)

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
            milliseconds = round((perf_counter() - start) * 1000, 1)
            _log(scope, {"status": status or CLIENT_CLOSED, "ms": milliseconds, **facts})


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SANE_ID.fullmatch(given) else uuid4().hex


def _log(scope: Scope, ending: Mapping[str, Any]) -> None:
    """Log the request with its fields, which the JSON format takes from the record."""
    fields = {
        "id": scope["state"]["request_id"],
        "method": scope["method"],
        "path": scope["path"],
        **ending,
    }
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    words = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
    logger.log(level, "request %s", words, extra={"request": fields})


def _word(value: Any) -> str:
    """Return a value as one word; only what a client may choose freely is quoted."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    is_plain = isinstance(value, str) and SANE_ID.fullmatch(value) and not value.startswith("/")
    return value if is_plain else json.dumps(value)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        request: dict[str, Any] | None = getattr(record, "request", None)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": "request" if request else record.getMessage(),
            **(request or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def start_logging(log_format: str) -> None:
    """Send the log of this process to stderr, from INFO upwards."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = log_format == "json"
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
