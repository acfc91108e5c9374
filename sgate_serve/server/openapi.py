"""/openapi.json with the statuses and content types that are really sent.

FastAPI states a 422 for every body, which this server answers with a 400.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST

from sgate_serve.server.paths import (
    HEALTH_PATH,
    MESSAGES_PATH,
    METRICS_PATH,
    OPEN_PATHS,
    TOKENIZER_INFO_PATH,
)
from sgate_serve.server.routes.pooling import COHERE_EMBED_PATH
from sgate_serve.server.routes.scoring import RERANK_PATHS, SCORE_PATHS
from sgate_serve.server.server_options import ServerOptions

MEANINGS = {
    400: "the request is invalid, or does not fit the model",
    401: "the API key is missing or wrong",
    404: "the model is not the served one",
    408: "the body came too slowly",
    413: "the body is too large",
    429: "the queue is full; Retry-After says when to try again",
    500: "a bug, or the engine failed during the request",
    503: "the server is loading or stopping, or its engine has failed",
    504: "the request took longer than this server's limit",
}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", MESSAGES_PATH)
QUEUED = (*STREAMED, "/v1/embeddings", COHERE_EMBED_PATH, "/classify", *SCORE_PATHS, *RERANK_PATHS)
READY = (HEALTH_PATH, TOKENIZER_INFO_PATH)
FOREIGN_SCHEMAS = ("HTTPValidationError", "ValidationError")

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def state_responses(app: FastAPI, options: ServerOptions) -> None:
    """Make the app's schema state its own responses, in the way that FastAPI documents."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _correct(build(), options)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _correct(schema: dict[str, Any], options: ServerOptions) -> None:
    schemas = schema["components"]["schemas"]
    for name in FOREIGN_SCHEMAS:
        schemas.pop(name, None)
    schemas["Error"] = ERROR_SCHEMA
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"]
            responses.pop("422", None)
            for status in sorted(_refusals(path, method, options)):
                responses[str(status)] = {"description": MEANINGS[status], "content": content}
            if path in STREAMED:
                responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            if path == METRICS_PATH:
                responses["200"]["content"] = {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}


def _refusals(path: str, method: str, options: ServerOptions) -> Iterator[int]:
    """Yield the statuses of refused requests to an endpoint."""
    yield 500
    if method == "post":
        yield from (400, 404, 408, 413)
        if options.request_timeout_seconds is not None:
            yield 504
    if method == "post" or path.startswith("/v1/models") or path in READY:
        yield 503
    if path in QUEUED:
        yield 429
    if path.startswith("/v1/models/") or path == TOKENIZER_INFO_PATH:
        yield 404
    if options.api_key is not None and path not in OPEN_PATHS:
        yield 401
