"""Turns exceptions into OpenAI error bodies, `{"error": {"message", "type", "param", "code"}}`.

Any exception other than a refusal is a bug: the client gets a 500, and the log the traceback.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgate_serve.errors import RequestError, did_you_mean
from sgate_serve.server.excerpt import cut
from sgate_serve.server.paths import MESSAGES_PATH

RETRY_AFTER_SECONDS = 2
RETRYABLE = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
INVALID = "invalid_request_error"
ANTHROPIC_KINDS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
INTERNAL_ERROR = RequestError(
    "internal server error; the server's log has the traceback under this request's id",
    status=HTTPStatus.INTERNAL_SERVER_ERROR,
)


def error_body(error: RequestError) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else INVALID
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def messages_error(error: RequestError) -> dict[str, Any]:
    """Return the body of an error in Anthropic's shape; `param` and `code` are added to it.

    Anthropic's SDK reads the code of an error that it can recover from in `details`.
    """
    kind = ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else INVALID)
    own = error_body(error)["error"] | {"type": kind}
    if error.code is not None:
        own["details"] = {"error_code": error.code}
    return {"type": "error", "error": own}


def error_response(
    error: RequestError, headers: Mapping[str, str] | None = None, path: str = ""
) -> Response:
    """Return the response for an error, in the shape of the API at `path`.

    429 and 503 carry Retry-After, which the SDKs obey.
    """
    added = dict(headers or {})
    if error.status in RETRYABLE:
        added["retry-after"] = str(RETRY_AFTER_SECONDS)
    return Response(error_json(error, path), error.status, added, "application/json")


def error_json(error: RequestError, path: str = "") -> str:
    """Return the body of an error in ASCII, as it may quote what UTF-8 cannot carry."""
    is_anthropics = path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")
    return json.dumps(messages_error(error) if is_anthropics else error_body(error))


def as_request_error(error: Exception, request: Request) -> RequestError:
    """Return the error to send for an exception of an endpoint or of the framework."""
    match error:
        case RequestError():
            return error
        case HTTPException(status_code=404):
            path = request.scope["path"]
            near = did_you_mean(path, _paths(request))
            return RequestError(f"there is no {cut(path)}; /docs lists the paths{near}", status=404)
        case HTTPException(status_code=405):
            path, method = cut(request.scope["path"]), cut(request.method)
            return RequestError(
                f"{path} does not take {method}; /docs lists its methods",
                status=405,
            )
        case HTTPException(status_code=status, detail=detail):
            return RequestError(f"the request cannot be read: {detail}", status=status)
    return INTERNAL_ERROR


def _paths(request: Request) -> list[str]:
    """Return the paths of the app that a request came to."""
    return [route.path for route in request.app.routes if isinstance(route, Route)]


def install_handlers(app: FastAPI) -> None:
    """Make the app answer every error with an OpenAI error body."""

    async def answer(request: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        path = request.scope["path"]
        return error_response(as_request_error(error, request), headers, path)

    for kind in (RequestError, HTTPException):
        app.add_exception_handler(kind, answer)
