"""What ill-behaved clients of a soak do: they hang up, and send bodies that must be refused."""

import json
import socket
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import httpx

from benchmarks.soak.answers import PROMPTS, AnswerError

LONG_ANSWER = 200
# An error quotes little of what was sent.
MAX_ERROR_BYTES = 2000
HALF_SENT_SECONDS = 0.1
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
MANY = 200_000
USER = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, '
BAD_BODIES: Sequence[tuple[str, bytes]] = (
    (COMPLETIONS, b'{"prompt": "a", "max_tokens": "5"}'),
    (COMPLETIONS, b'{"prompt": "a", "max_token": 5}'),
    (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}'),
    (COMPLETIONS, b'{"prompt": "a"'),
    (COMPLETIONS, b"\xff\xfe{}"),
    (COMPLETIONS, b'{"prompt": [' + b"null," * MANY + b"1]}"),
    (COMPLETIONS, b'{"prompt": [' + b"1," * MANY + b"1]}"),
    (COMPLETIONS, b'{"prompt": ' + b"[" * MANY + b"]" * MANY + b"}"),
    (COMPLETIONS, b'{"prompt": "' + b"a" * 4_000_000 + b'"}'),
    (COMPLETIONS, b'{"prompt": "a", "stop": [' + b'"b",' * MANY + b'"c"]}'),
    (COMPLETIONS, b'{"prompt": "a", "n": 129}'),
    (CHATS, USER + b'"tools": [' + b"{}," * MANY + b"{}]}"),
    (CHATS, USER + b'"response_format": {"type": "json_schema"}}'),
    (CHATS, USER + b'"structured_outputs": {"regex": "(?=a)b"}}'),
    (CHATS, USER + b'"structured_outputs": {"choice": [' + b'"b",' * MANY + b'"c"]}}'),
    (CHATS, b'{"messages": [' + b'{"role": "user", "content": [' * 50 + b"]}" * 50 + b"]}"),
    ("/v1/responses", b'{"input": [' + b"{}," * MANY + b"{}]}"),
    ("/v1/responses", b'{"input": "a", "previous_response_id": "resp_1"}'),
    ("/v1/messages", b'{"messages": [{"role": "user", "content": "a"}]}'),
    ("/v1/messages", b"[" * MANY),
    ("/tokenize", b'{"prompt": {"a": ' * 1000),
)


def send_bad_body(client: httpx.Client, random: Random) -> None:
    """Send one of BAD_BODIES, which must be refused with a short 400, or a 413 of the long ones."""
    path, body = random.choice(BAD_BODIES)
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    if response.status_code not in (400, 413) or len(response.content) > MAX_ERROR_BYTES:
        raise AnswerError(
            f"{path} answered {body[:60]!r} with {response.status_code} and "
            f"{len(response.content)} bytes: {response.text[:200]}"
        )


def send_half(client: httpx.Client, random: Random) -> None:
    """Send a part of a request and hang up."""
    whole = _request(client, random, stream=False)
    with _connection(client) as connection:
        connection.sendall(whole[: random.randrange(1, len(whole))])
        time.sleep(random.random() * HALF_SENT_SECONDS)


def hang_up(client: httpx.Client, random: Random) -> None:
    """Ask for a long answer and hang up before it ends, mostly while it is streamed."""
    stream = random.random() < 0.7
    with _connection(client) as connection:
        connection.sendall(_request(client, random, stream))
        if stream:
            connection.recv(random.randrange(1, 4000))
        else:
            time.sleep(random.random() * HALF_SENT_SECONDS)


def _connection(client: httpx.Client) -> socket.socket:
    address = (client.base_url.host, client.base_url.port or 80)
    return socket.create_connection(address, timeout=60)


def _request(client: httpx.Client, random: Random, stream: bool) -> bytes:
    """Return the bytes of a request for a long answer."""
    own: dict[str, Any] = {"max_tokens": LONG_ANSWER, "ignore_eos": True, "n": 2, "stream": stream}
    body = json.dumps({"prompt": random.choice(PROMPTS), **own})
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {client.base_url.host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()
