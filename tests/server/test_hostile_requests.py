"""What a server does with requests that are made to stop it: it answers everyone else.

Times have generous limits, because the machine of a test is busy.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sgate_serve.server import connection, middleware
from sgate_serve.server.protocol.strict_body import StrictBody, read_body
from sgate_serve.server.routes import body_route
from sgate_serve.text import chat_template as chat_templates
from sgate_serve.text.chat_template import ChatTemplate
from sgate_serve.text.template_worker import TemplateWorker
from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    TOKENIZER,
    VOCAB_SIZE,
    hang_on,
    refusal,
    serving_engine,
    wait_until,
)

JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LONGEST_WAIT = 1.5
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving_engine(HashEngine(VOCAB_SIZE)) as client:
        yield client


@contextmanager
def health_answers(client: httpx.Client) -> Iterator[None]:
    """Ask for /health all the while, and fail the test if an answer was late."""
    waits: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            while not over.is_set() or not waits:
                start = time.monotonic()
                assert other.get("/health").status_code == 200
                waits.append(time.monotonic() - start)
                time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert waits
    assert max(waits) < LONGEST_WAIT


MANY_CHOICES: dict[str, Any] = {"prompt": ["a"] * 8, "n": 128, "max_tokens": 1}


def many(before: bytes, item: bytes, after: bytes, num_bytes: int) -> bytes:
    return before + item * (num_bytes // len(item)) + after


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/v1/completions", many(b'{"prompt":[', b"null,", b"1]}", 2**21), "`prompt.0` is None"),
        ("/v1/completions", many(b'{"prompt":[', b"[],", b"1]}", 2**19), "`prompt.0` is []"),
        ("/v1/completions", many(b'{"prompt":[', b"0,", b"1]}", 2**20 - 8), "`prompt` has 524285"),
        (
            "/v1/completions",
            many(b'{"prompt":[', b"[],", b"1]}", 2**23 - 99),
            "values; at most 524288 are read",
        ),
        ("/v1/completions", many(b'{"prompt":"', b"def ", b'"}', 2**22), "has 4194304 characters"),
        ("/v1/completions", many(b'{"prompt":"', b'\\"', b"\\", 2**22), "Unterminated string"),
        ("/v1/completions", many(b'{"prompt":', b"[", b"", 2**18), "nested too deeply"),
        ("/v1/completions", many(b'{"', b"x", b'":1}', 2**22), "is not a known field; leave it"),
        ("/v1/completions", many(b'{"stop":"', b"x", b'"}', 2**22), "at most 1024 characters"),
        ("/v1/completions", many(b'{"model":', b"9", b"}", 2**22), "Exceeds the limit"),
        ("/v1/chat/completions", many(b'{"messages":[', b"{},", b"0]}", 2**19), "messages.0.role"),
        ("/v1/chat/completions", many(b'{"messages":"', b"x", b'"}', 2**22), "`messages` is 'xx"),
        ("/detokenize", many(b'{"tokens":[', b"0.5,", b"1]}", 2**20), "`tokens.0` is 0.5"),
        ("/tokenize", many(b'{"prompt":"', b"def ", b'"}', 2**22), "at most 1048576 characters"),
    ],
)
def test_long_bodies_are_refused_in_few_words_and_delay_no_one(
    client: httpx.Client, path: str, content: bytes, message: str
) -> None:
    with health_answers(client):
        response = client.post(path, content=content, headers=JSON, timeout=60)
    assert response.status_code == 400
    assert message in refusal(response)["message"]
    assert len(response.content) < 1000


def test_long_valid_bodies_delay_no_one(client: httpx.Client) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/tokenize", {"prompt": "def f(x): " * 30_000}),
        ("/detokenize", {"tokens": [5] * 400_000}),
        ("/v1/completions", {"prompt": ["the cat "] * 1000, "max_tokens": 1, "logprobs": 20}),
        ("/v1/completions", {**MANY_CHOICES, "allowed_token_ids": [5] * 400_000}),
        ("/v1/completions", {**MANY_CHOICES, "bad_words": ["the cat " * 32] * 256}),
        ("/apply-template", {"messages": [{"role": "a", "content": "a", "b": [0] * 400_000}]}),
        (
            "/v1/completions",
            {"prompt": "a" * 500_000, "max_tokens": 1, "truncate_prompt_tokens": 2},
        ),
        ("/v1/completions", {"prompt": [5] * 400, "max_tokens": 1, "prompt_logprobs": -1}),
        ("/v1/responses", {"input": "a", "metadata": {"b": "\x01" * 400_000}, "stream": True}),
    ]
    for path, body in bodies:
        with health_answers(client):
            assert client.post(path, json=body, timeout=60).status_code == 200


def test_chunks_of_one_byte_delay_no_one(client: httpx.Client) -> None:
    with health_answers(client), connected(client) as peer:
        peer.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 40_000)
        peer.sendall(b"0\r\n\r\n")
        assert answer(peer).startswith(b"HTTP/1.1 400 ")


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    place = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(place, timeout=20) as peer:
        yield peer


def answer(peer: socket.socket) -> bytes:
    """All that the server sends until it closes the connection or has sent a JSON object."""
    received = b""
    while not received.endswith(b"}") and (piece := peer.recv(2**16)):
        received += piece
    return received


def error_of(received: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    return error


@pytest.mark.parametrize("headers", [b"X: " + b"a" * 70_000, b"a:\r\n" * 20_000])
def test_long_headers_are_a_431(client: httpx.Client, headers: bytes) -> None:
    with connected(client) as peer:
        peer.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n" + headers)
        received = answer(peer)
    assert received.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert error_of(received)["message"].startswith("the headers are over 32768 bytes; send fewer")


def test_what_is_not_http_is_a_400(client: httpx.Client) -> None:
    with connected(client) as peer:
        peer.sendall(b"\x16\x03\x01\x02\r\n\r\n")
        received = answer(peer)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert error_of(received)["type"] == "invalid_request_error"


@pytest.mark.parametrize("sent", [b"", b"GET /version HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_come_are_a_408(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    with serving_engine(HashEngine(VOCAB_SIZE)) as client, connected(client) as peer:
        peer.sendall(sent)
        time.sleep(0.3)
        peer.sendall(sent and b"X: y\r\n")  # does not buy more time
        received = answer(peer)
        assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert peer.recv(1) == b""


def test_connection_that_is_kept_alive_has_its_time_for_each_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    with serving_engine(HashEngine(VOCAB_SIZE)) as client, connected(client) as peer:
        for _ in range(4):
            peer.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n")
            time.sleep(0.2)
            peer.sendall(b"\r\n")
            assert answer(peer).startswith(b"HTTP/1.1 200 OK\r\n")


def test_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.5)
    with serving_engine(HashEngine(VOCAB_SIZE)) as client, connected(client) as peer:
        peer.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        received = answer(peer)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert error_of(received)["message"] == "the body did not come within 0.5 s"


def test_client_that_goes_on_sending_after_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3)
    with serving_engine(HashEngine(VOCAB_SIZE), api_key="k") as client, connected(client) as peer:
        peer.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n{")
        assert answer(peer).startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        wait_until(lambda: not goes_on(peer))


@pytest.mark.parametrize("ending", [b"Connection: close\r\n", b""])
@pytest.mark.parametrize("key", ["k", "wrong"])
def test_client_that_sends_a_body_too_large_sees_the_answer(ending: bytes, key: str) -> None:
    options: dict[str, Any] = {"api_key": "k", "max_body_bytes": 1000}
    head = HEAD + b"Authorization: Bearer " + key.encode() + b"\r\n" + ending
    with serving_engine(HashEngine(VOCAB_SIZE), **options) as client, connected(client) as peer:
        peer.sendall(head + b"Content-Length: 8000000\r\n\r\n" + b" " * 8_000_000)
        received = answer(peer)
    status = b"413 Request Entity Too Large" if key == "k" else b"401 Unauthorized"
    assert received.startswith(b"HTTP/1.1 " + status)


def test_client_that_asks_before_it_sends_is_refused_at_once() -> None:
    with (
        serving_engine(HashEngine(VOCAB_SIZE), max_body_bytes=9) as client,
        connected(client) as peer,
    ):
        peer.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        assert answer(peer).startswith(b"HTTP/1.1 413 ")


def goes_on(peer: socket.socket) -> bool:
    try:
        peer.sendall(b" ")
    except OSError:
        return False
    return True


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], TextCodec]]:
    """A function that returns a codec whose template ends only with its time."""
    workers: list[TemplateWorker] = []

    def codec_of(job_seconds: float) -> TextCodec:
        workers.append(TemplateWorker(job_seconds))
        monkeypatch.setattr(chat_templates, "shared_worker", lambda: workers[-1])
        return TextCodec(TOKENIZER, ChatTemplate(ENDLESS, {}))

    yield codec_of
    for worker in workers:
        worker.close()


def test_template_that_never_ends_is_a_400(endless: Callable[[float], TextCodec]) -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), codec=endless(0.5)) as client:
        with health_answers(client):
            response = client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 400
        assert refusal(response)["message"] == (
            "the model's chat template refused the messages: it takes longer than 0.5 s"
        )


def test_chats_that_wait_for_a_template_keep_no_one_else_waiting(
    endless: Callable[[float], TextCodec],
) -> None:
    options: dict[str, Any] = {"codec": endless(2.0), "request_timeout_seconds": 1.0}
    with serving_engine(HashEngine(VOCAB_SIZE), **options) as client:
        hanging = [hang_on(client, CHAT, "/v1/chat/completions") for _ in range(40)]
        with health_answers(client):
            assert client.post("/v1/completions", json={"prompt": "a"}).is_success
            # The time of a chat counts from its first byte, not from its turn.
            start = time.monotonic()
            response = client.post("/v1/chat/completions", json=CHAT)
            assert time.monotonic() - start < 1.9
        assert response.status_code == 504
        assert refusal(response)["code"] == "request_timeout"
        for peer in hanging:
            peer.close()


def test_chats_of_clients_that_hung_up_leave_the_queue_of_the_template(
    endless: Callable[[float], TextCodec], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO"),
        serving_engine(HashEngine(VOCAB_SIZE), codec=endless(0.6)) as client,
    ):
        for _ in range(20):
            hang_on(client, CHAT, "/v1/chat/completions").close()
        wait_until(lambda: caplog.text.count("status=499") == 20)
        start = time.monotonic()
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 400
        assert time.monotonic() - start < 5  # not 20 times 0.6 s


def test_time_limit_counts_a_body_that_comes_slowly() -> None:
    options: dict[str, Any] = {"request_timeout_seconds": 0.5}
    with serving_engine(HashEngine(VOCAB_SIZE), **options) as client, connected(client) as peer:
        peer.sendall(HEAD[:-2])
        time.sleep(0.4)
        start = time.monotonic()
        peer.sendall(b"\r\nContent-Length: 100\r\n\r\n{")
        received = answer(peer)
        assert time.monotonic() - start < 0.4
    assert received.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert error_of(received)["code"] == "request_timeout"


@pytest.mark.parametrize(("num_bytes", "num_at_once"), [(100_000, 1), (100, 4)])
def test_long_bodies_are_read_one_after_the_other(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, num_bytes: int, num_at_once: int
) -> None:
    """Each holds the interpreter's lock at times, and everyone else waits for all of them."""
    reading: list[bytes] = []
    seen: list[int] = []

    def read_slowly(content: bytes, kind: type[StrictBody]) -> StrictBody:
        reading.append(content)
        time.sleep(0.1)
        seen.append(len(reading))
        reading.pop()
        return read_body(content, kind)

    monkeypatch.setattr(body_route, "read_body", read_slowly)
    body = b'{"prompt": "a"' + b" " * num_bytes + b"}"
    with ThreadPoolExecutor(4) as pool:
        sent = [
            pool.submit(client.post, "/v1/completions", content=body, headers=JSON)
            for _ in range(4)
        ]
    assert all(response.result().is_success for response in sent)
    assert max(seen) == num_at_once


def test_calls_over_the_queue_are_refused_before_any_work_on_them() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), max_queue=2) as client:
        response = client.post("/v1/completions", json={"prompt": [[10**9]] * 3})
        assert "this call has 3 prompts and choices, but" in refusal(response)["message"]


def test_log_probabilities_of_many_choices_are_refused_up_front(client: httpx.Client) -> None:
    body = {"prompt": [[5]] * 1000, "max_tokens": 400, "logprobs": 20}
    error = refusal(client.post("/v1/completions", json=body))
    assert error["param"] == "logprobs"
    assert "this call may have 8400000 log-probabilities, and at most 524288" in error["message"]
