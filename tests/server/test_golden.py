"""Exchanges byte by byte: what is on the wire changes only on purpose.

Each file of golden/ holds a request line, the body, and the exact response, of which only the date
and `created` are replaced. Headers stand in the order of their names, in small letters: uvicorn
writes some in another order and in capitals where httptools is not installed, and to clients that
is the same. `GOLDEN_WRITE=1 pytest tests/server/test_golden.py` writes them anew;
read the difference before it is committed.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from sgate_serve.server.classifier_head import ClassifierHead
from tests.server.encoders import encoder_of
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    VOCAB_SIZE,
    hang_on,
    serving_engine,
    serving_model,
    speaking,
    wait_until,
)
from tests.server.tool_server import saying
from tests.tool_templates import WEATHER

FOLDER = Path(__file__).parent / "golden"
WRITE = "GOLDEN_WRITE"
TEXT = "the cat 🚀 sat"
PROMPT = {"prompt": "a gate", "max_tokens": 20}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 3}
CHAT_WITH_TOOLS = {"messages": CHAT["messages"], "tools": [WEATHER]}
RESPONSE = {"input": "hi", "tools": [{"type": "function", **WEATHER["function"]}]}
ANTHROPICS = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
MESSAGE = {"max_tokens": 200, "messages": CHAT["messages"], "tools": [ANTHROPICS]}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern", "unit": "C"}}</tool_call>'
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"

Server = Literal["text", "guarded", "full", "tools", "embed", "classify"]


@dataclass(frozen=True)
class Exchange:
    """One request, and the kind of server that answers it."""

    path: str
    body: dict[str, Any]
    server: Server = "text"


EXCHANGES = {
    "completion": Exchange(COMPLETIONS, PROMPT),
    "completion-stream": Exchange(COMPLETIONS, PROMPT | STREAM),
    "completion-logprobs": Exchange(COMPLETIONS, PROMPT | {"echo": True, "logprobs": 2}),
    "completion-choices": Exchange(COMPLETIONS, PROMPT | {"n": 2, "return_token_ids": True}),
    "completion-prompt-logprobs": Exchange(COMPLETIONS, PROMPT | {"prompt_logprobs": 1}),
    "chat": Exchange(CHATS, CHAT),
    "chat-stream": Exchange(CHATS, CHAT | STREAM),
    "chat-logprobs": Exchange(CHATS, CHAT | {"logprobs": True, "top_logprobs": 2}),
    "chat-tools": Exchange(CHATS, CHAT_WITH_TOOLS, "tools"),
    "chat-tools-stream": Exchange(CHATS, CHAT_WITH_TOOLS | STREAM, "tools"),
    "responses": Exchange("/v1/responses", RESPONSE, "tools"),
    "responses-stream": Exchange("/v1/responses", RESPONSE | {"stream": True}, "tools"),
    "messages": Exchange("/v1/messages", MESSAGE, "tools"),
    "messages-stream": Exchange("/v1/messages", MESSAGE | {"stream": True}, "tools"),
    "messages-400": Exchange("/v1/messages", {"messages": CHAT["messages"]}, "tools"),
    "tokenize": Exchange("/tokenize", {"prompt": "the 🚀", "return_token_strs": True}),
    "detokenize": Exchange("/detokenize", {"tokens": [0, 84, 85]}),
    "embeddings": Exchange("/v1/embeddings", {"input": ["a", "the cat"]}, "embed"),
    "embeddings-base64": Exchange(
        "/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "embed"
    ),
    "embeddings-by-type": Exchange(
        "/v2/embed", {"texts": ["the cat"], "embedding_types": ["float", "base64"]}, "embed"
    ),
    "classify": Exchange("/classify", {"input": "a", "text_pair": "the cat"}, "classify"),
    "error-400": Exchange(COMPLETIONS, PROMPT | {"temperature": 3}),
    "error-400-task": Exchange(COMPLETIONS, PROMPT, "classify"),
    "error-401": Exchange(COMPLETIONS, PROMPT, "guarded"),
    "error-404": Exchange(COMPLETIONS, PROMPT | {"model": "gpt"}),
    "error-429": Exchange(COMPLETIONS, PROMPT, "full"),
}


@contextmanager
def running(kind: Server) -> Iterator[httpx.Client]:
    with ExitStack() as stack:
        match kind:
            case "text":
                client = stack.enter_context(serving_engine(speaking(TEXT)))
            case "guarded":
                client = stack.enter_context(serving_engine(speaking(TEXT), api_key="key"))
            case "tools":
                client = stack.enter_context(saying(f"Yes.{CALL}"))
            case "full":
                engine = HashEngine(
                    VOCAB_SIZE, num_slots=1, step_seconds=0.01, max_model_len=100_000
                )
                client = stack.enter_context(serving_engine(engine, max_queue=1))
                body = {"prompt": "a", "max_tokens": 90_000, "ignore_eos": True}
                stack.enter_context(hang_on(client, body))
                wait_until(lambda: "num_requests_running{" in running_lines(client))
                stack.enter_context(hang_on(client, body))
                wait_until(lambda: engine.stats().num_waiting == 1)
            case "embed" | "classify":
                # Not every machine's exponential is the same in the last digit.
                head = ClassifierHead(("no", "maybe", "yes"), "regression")
                client = stack.enter_context(serving_model(encoder_of(kind, head=head)))
        yield client


def running_lines(client: httpx.Client) -> str:
    """The lines of /metrics that show one running request."""
    lines = client.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if line.endswith(" 1.0"))


def transcript(client: httpx.Client, exchange: Exchange) -> bytes:
    """Send the request on a connection of its own; return it with what comes back."""
    body = json.dumps(exchange.body, ensure_ascii=False).encode()
    head = [
        f"POST {exchange.path} HTTP/1.1",
        "host: golden",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "x-request-id: golden",
        "connection: close",
    ]
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    answer = with_plain_headers(answer)
    answer = re.sub(rb"(?m)^date: [^\r]*", b"date: DATE", answer)
    answer = re.sub(rb'"(created|created_at)":( ?)\d+', rb'"\g<1>":\g<2>0', answer)
    answer = re.sub(rb'"(call|msg|fc)_[0-9a-f]{24,}"', rb'"\g<1>_ID"', answer)
    return f"POST {exchange.path}\n".encode() + body + b"\n\n" + answer


def with_plain_headers(answer: bytes) -> bytes:
    """Return a response with its header names in small letters, and in their order."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    fields = (header.partition(b":") for header in headers)
    plain = sorted(name.lower() + colon + value for name, colon, value in fields)
    return b"\r\n".join([status, *plain]) + separator + body


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchange_is_the_recorded_one(name: str) -> None:
    exchange, path = EXCHANGES[name], FOLDER / f"{name}.txt"
    with running(exchange.server) as client:
        found = transcript(client, exchange)
    if os.environ.get(WRITE):
        path.write_bytes(found)
    assert found.decode() == path.read_bytes().decode()


def test_every_record_is_replayed() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == EXCHANGES.keys()
