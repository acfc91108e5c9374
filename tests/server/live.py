"""A real server on a free port of this machine, in a thread of the test."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.lifecycle import DrainingServer, address, open_listener
from sgate_serve.server.routes.models import Load, Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.served_model import AnyEngine, ServedModel
from sgate_serve.server.server_options import DEFAULT_SHARE, ServerOptions
from sgate_serve.server.shadow.shadow import Shadow
from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.text_model import EOS, byte_tokenizer, chat_template, special_id

MODEL = "some/tiny-model"
TOKENIZER = byte_tokenizer()
CODEC = TextCodec(TOKENIZER, chat_template())
VOCAB_SIZE = TOKENIZER.get_vocab_size()
EOS_ID = special_id(TOKENIZER, EOS)
WAIT_SECONDS = 60.0


def token_ids(text: str) -> list[int]:
    """The tokens of a text, without the `<s>` that a prompt begins with."""
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def speaking(text: str, **options: Any) -> HashEngine:
    """An engine that says this text, then stops."""
    return HashEngine(VOCAB_SIZE, script=[*token_ids(text), EOS_ID], **options)


def model_of(engine: AnyEngine, codec: TextCodec | None = CODEC) -> ServedModel:
    return ServedModel(engine, MODEL, codec, frozenset({EOS_ID}))


def models_of(engine: AnyEngine, options: ServerOptions) -> Models:
    return Models(Service(EngineDriver(lambda: model_of(engine), options)), options)


@contextmanager
def serving(
    load: Load,
    shadow: ServedModel | None = None,
    others: Mapping[str, Load] | None = None,
    **options: Any,
) -> Iterator[httpx.Client]:
    """Run a server until the block ends; yields a client whose base is the server's address."""
    if shadow is not None:
        options["shadow"] = "folder"
    if others is not None:
        options["model"] = tuple(f"{name}=folder" for name in others)
    chosen = ServerOptions(**{"grace_seconds": 2.0, **options})
    beside = None
    if shadow is not None:
        share = chosen.shadow_share or DEFAULT_SHARE
        beside = Shadow(EngineDriver(lambda: shadow, chosen), share)
    with open_listener(chosen.host, 0) as listener:
        first = Service(EngineDriver(load, chosen), beside)
        server = DrainingServer(Models(first, chosen, others), chosen)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx.Client(base_url=address(listener), timeout=WAIT_SECONDS) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving_engine(
    engine: AnyEngine, codec: TextCodec | None = CODEC, **options: Any
) -> Iterator[httpx.Client]:
    """Run a server around an engine, ready when the block begins."""
    with serving_model(model_of(engine, codec), **options) as client:
        yield client


@contextmanager
def serving_model(model: ServedModel, **options: Any) -> Iterator[httpx.Client]:
    """Run a server of a model, ready when the block begins."""
    with serving(lambda: model, **options) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.01)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a streamed answer, which must end with `[DONE]`."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The error of a refused request, which must have OpenAI's shape and the request's id."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def hang_on(
    client: httpx.Client, body: dict[str, Any], path: str = "/v1/completions"
) -> socket.socket:
    """Send a request on a connection of its own and read nothing."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80))
    request = client.build_request("POST", path, json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
    return connection
