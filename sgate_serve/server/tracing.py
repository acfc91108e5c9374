"""OpenTelemetry: a span for each request of a model, sent to a collector (extra `otel`).

Names are those of OpenTelemetry's conventions for HTTP servers and generative AI. Spans hold no
text of prompts or answers. The SDK's variables, such as OTEL_EXPORTER_OTLP_HEADERS and
OTEL_SERVICE_NAME, apply.
"""

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgate_serve.errors import SgateError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "sgate-serve"
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
# How long the last spans may take to be sent when the server stops.
FLUSH_SECONDS = 3.0
# The conventions' name of what an endpoint does; others are named by their path.
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def start_tracing(endpoint: str) -> "TracerProvider":
    """Return a provider whose spans go to an OTLP collector, such as http://host:4318/v1/traces.

    Raises SgateError unless the extra is installed.
    """
    try:
        exporter = import_module(EXPORTER).OTLPSpanExporter(endpoint)
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SgateError(
            f"--otlp-traces-endpoint needs OpenTelemetry ({error}); install it with "
            "`pip install 'sgate-serve[otel]'`"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
    resource = Resource.create({SERVICE_NAME: name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def stop_tracing(provider: "TracerProvider") -> None:
    """Send the last spans; a collector that does not answer is not waited for long."""
    # The SDK would wait for as long as the exporter tries.
    sending = Thread(target=provider.shutdown, name="last traces", daemon=True)
    sending.start()
    sending.join(FLUSH_SECONDS)


class Tracing:
    """Makes a span of each POST request, under the caller's if it sent a `traceparent`.

    It must be inside of RequestLog, whose facts about the request it shares.
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = provider.get_tracer(SERVICE)
        self._callers = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        caller = self._callers.extract(dict(Headers(scope=scope)))
        operation = OPERATIONS.get(scope["path"], scope["path"].rpartition("/")[2])
        span = self._tracer.start_span(operation, caller, self._kind)
        try:
            await self._app(scope, receive, send_and_see)
        except Exception as error:
            # Not its text, which may quote a prompt.
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(self._failed)
            raise
        finally:
            facts: Mapping[str, Any] = scope["state"]["log"]
            if "model" in facts:
                span.update_name(f"{operation} {facts['model']}")
            span.set_attributes(dict(_attributes(scope, operation, status, facts)))
            if status is not None and status >= 500:
                span.set_status(self._failed)
            span.end()


def _attributes(
    scope: Scope, operation: str, status: int | None, facts: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield what is known of a request at its end."""
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", SERVICE
    yield "http.request.method", scope["method"]
    yield "url.path", scope["path"]
    yield "sgate.request_id", scope["state"]["request_id"]
    if status is not None:
        yield "http.response.status_code", status
        if status >= 400:
            yield "error.type", str(status)
    names = {
        "model": "gen_ai.response.model",
        "prompt_tokens": "gen_ai.usage.input_tokens",
        "completion_tokens": "gen_ai.usage.output_tokens",
        "finish_reasons": "gen_ai.response.finish_reasons",
    }
    for fact, name in names.items():
        if fact in facts:
            yield name, facts[fact]
