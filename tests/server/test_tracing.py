"""Traces, as a collector gets them from OpenTelemetry's own exporter."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sgate_serve.errors import SgateError
from sgate_serve.server import tracing
from sgate_serve.server.server_options import ServerOptions
from tests.server.hash_engine import HashEngine
from tests.server.live import EOS_ID, MODEL, VOCAB_SIZE, serving_engine, speaking, token_ids

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def traced(engine: HashEngine) -> Iterator[tuple[httpx.Client, list[bytes]]]:
    """Serve an engine; yields a client and the bodies that a collector has got, all at the end."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        try:
            with serving_engine(engine, otlp_traces_endpoint=url) as client:
                yield client, received
        finally:
            server.shutdown()
            thread.join()


def spans_of(received: list[bytes]) -> list[dict[str, Any]]:
    """Return the spans, each with its attributes as a dictionary."""
    spans = []
    for body in received:
        request = MessageToDict(ExportTraceServiceRequest.FromString(body))
        for resource in request["resourceSpans"]:
            service = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            assert service["service.name"] == {"stringValue": "sgate-serve"}
            for scope in resource["scopeSpans"]:
                spans += scope["spans"]
    for span in spans:
        span["attributes"] = {a["key"]: a["value"] for a in span["attributes"]}
    return spans


def test_requests_are_traced_under_their_caller_and_without_text() -> None:
    body = {"messages": [{"role": "user", "content": "a secret"}], "stream": True}
    with traced(speaking("an answer")) as (client, received):
        client.post("/v1/chat/completions", json=body, headers={"traceparent": CALLER})
        client.post("/v1/completions", json={"prompt": "x", "max_tokens": -1})
        client.get("/v1/models")
    chat, refused = spans_of(received)
    assert (chat["name"], refused["name"]) == (f"chat {MODEL}", "text_completion")
    assert chat["kind"] == "SPAN_KIND_SERVER"
    _, trace, parent, _ = CALLER.split("-")
    assert base64.b64decode(chat["traceId"]).hex() == trace
    assert base64.b64decode(chat["parentSpanId"]).hex() == parent
    assert "parentSpanId" not in refused
    assert int(chat["startTimeUnixNano"]) < int(chat["endTimeUnixNano"])
    found = chat["attributes"]
    assert found["gen_ai.operation.name"] == {"stringValue": "chat"}
    assert found["gen_ai.response.model"] == {"stringValue": MODEL}
    assert found["gen_ai.usage.output_tokens"] == {"intValue": str(len(token_ids("an answer")))}
    assert found["gen_ai.response.finish_reasons"] == {
        "arrayValue": {"values": [{"stringValue": "stop"}]}
    }
    assert found["http.response.status_code"] == {"intValue": "200"}
    assert refused["attributes"]["error.type"] == {"stringValue": "400"}
    assert "secret" not in json.dumps([chat, refused])


def test_an_engine_that_fails_is_an_error_of_the_span() -> None:
    engine = HashEngine(VOCAB_SIZE, script=[EOS_ID])
    with traced(engine) as (client, received):
        engine.fails.set()
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 500
    (span,) = spans_of(received)
    assert span["status"] == {"code": "STATUS_CODE_ERROR"}


def test_a_silent_collector_does_not_hold_up_the_shutdown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with serving_engine(HashEngine(VOCAB_SIZE), otlp_traces_endpoint=url) as client:
            client.post("/v1/completions", json={"prompt": "x"})
            start = time.monotonic()
        assert time.monotonic() - start < tracing.FLUSH_SECONDS + 2


def test_traces_need_a_url_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SgateError, match="--otlp-traces-endpoint localhost:4318: give a URL"):
        ServerOptions(otlp_traces_endpoint="localhost:4318")
    monkeypatch.setattr(tracing, "EXPORTER", "opentelemetry.missing.exporter")
    with pytest.raises(SgateError, match=r"needs OpenTelemetry \(No module.*sgate-serve\[otel\]"):
        tracing.start_tracing("http://127.0.0.1:1/v1/traces")
