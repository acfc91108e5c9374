"""Request ids, and one log line per request, as text or as a JSON object."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.server.error_responses import as_request_error, error_response
from sgate_serve.server.excerpt import cut
from sgate_serve.server.paths import QUIET_PATHS
from sgate_serve.server.request_ids import HEADER, SAFE_ID, request_id

logger = logging.getLogger(__name__)

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# nginx's status for a client that closed the connection; only ever logged.
CLIENT_CLOSED = 499
MAX_PATH = 200


class RequestLog:
    """Gives each request an id, logs a line when it ends, and answers 500 for bugs.

    The id is the client's `x-request-id` if it is safe to log, else a new one, which an endpoint
    may replace by that of a body. It is in `scope["state"]`, in the response header `x-request-id`
    and in the log line. Endpoints add fields to the line through `scope["state"]["log"]`, but never
    the text of prompts or responses.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        status: int | None = None
        facts: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        state.update(request_id=request_id(scope), log=facts)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception as error:
            logger.exception("request failed id=%s", state["request_id"])
            if status is not None:  # the response has begun and can only be cut off
                raise
            refusal = as_request_error(error, Request(scope))
            await error_response(refusal, path=scope["path"])(scope, receive, send_with_id)
        finally:
            milliseconds = round((perf_counter() - start) * 1000, 1)
            _log(scope, {"status": status or CLIENT_CLOSED, "ms": milliseconds, **facts})


def _log(scope: Scope, ending: Mapping[str, Any]) -> None:
    """Log the request; JsonFormatter reads the fields from the record."""
    fields = {
        "id": scope["state"]["request_id"],
        "method": scope["method"],
        "path": cut(scope["path"], MAX_PATH),
        **ending,
    }
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    words = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
    logger.log(level, "request %s", words, extra={"request": fields})


def _word(value: Any) -> str:
    """Return a value as one word, quoted if a client could have put anything into it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    is_plain = isinstance(value, str) and SAFE_ID.fullmatch(value) and not value.startswith("/")
    return value if is_plain else json.dumps(value)


class JsonFormatter(logging.Formatter):
    """Writes one JSON object per line: time (UTC), level, logger, message, and request fields."""

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
    """Log to stderr, from level INFO upwards."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = log_format == "json"
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
