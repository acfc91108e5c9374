"""The parts of a stream that save time: frames of events, a queue with one reader, pieces."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import h11
import pytest

from sgate_serve.engines.contract import TokenEvent
from sgate_serve.server.connection import ChunkingConnection
from sgate_serve.server.execution.generation import Delta, Generation, Usage
from sgate_serve.server.protocol.generation_requests import StreamOptions
from sgate_serve.server.protocol.generation_responses import (
    ChatWriter,
    CompletionWriter,
    ResponseHead,
    ResponseWriter,
)
from sgate_serve.server.request_group import RequestGroup
from sgate_serve.server.routes.streaming import PLACEHOLDER, EventWriter
from sgate_serve.text.tool_calls import CallPiece

TEXTS = [
    "a word",
    'quotes " and \\ and \\n and /',
    "\n\r\t\b\f",
    "\0text\0",
    PLACEHOLDER,
    "".join(map(chr, range(0x20))),
    "\x7f\x80\u2028\u2029\ufeff\ufffd",
    "座った 🚀",
    "<0x0A>",
    '"finish_reason": null}]}\n\ndata: [DONE]',
]
HEAD = ResponseHead("cmpl-a/b:c", 1764530000, 'a "model" \\ 座 text')


async def events(writer: ResponseWriter, options: StreamOptions, deltas: list[Delta]) -> list[str]:
    stub = SimpleNamespace(usage_of=lambda index: Usage(3, 2), num_choices=0, usage=Usage(3, 2))
    first, *others = deltas

    async def rest() -> AsyncIterator[Delta]:
        for delta in others:
            yield delta

    stream = EventWriter(cast(Generation, stub), writer, options, every_token=False)
    return [event.decode() async for event in stream.events(first, rest())]


@pytest.mark.parametrize("writer", [CompletionWriter(HEAD), ChatWriter(HEAD)])
@pytest.mark.parametrize("includes_usage", [False, True])
def test_every_chunk_is_the_json_of_the_whole_one(
    writer: ResponseWriter, includes_usage: bool
) -> None:
    calls = (CallPiece(0, "{}", "id", "name"),)
    deltas = [Delta(index, text, (5,), prompt=(1,)) for text in TEXTS for index in (0, 1, 11)]
    deltas.insert(5, Delta(1, "before a call", (5,), calls=calls, has_called=True))
    deltas += [Delta(1, "after it", (5,), has_called=True), Delta(0, "end", (5,), "stop")]
    deltas += [Delta(1, "", (), "stop", has_called=True), Delta(11, "", (), "stop")]
    usage: dict[str, Any] = {"usage": None} if includes_usage else {}
    expected = [
        f"data: {json.dumps(chunk | usage, ensure_ascii=False)}\n\n"
        for delta in deltas
        for chunk in writer.chunks(delta)
    ]
    options = StreamOptions(include_usage=includes_usage)
    found = asyncio.run(events(writer, options, deltas))
    assert found[: len(expected)] == expected
    assert found[-1] == "data: [DONE]\n\n"


def test_a_delta_without_text_has_no_event_of_its_own() -> None:
    deltas = [Delta(0, "", (5,)), Delta(0, "a", (6,)), Delta(0, "", (7,))]
    assert len(asyncio.run(events(CompletionWriter(HEAD), StreamOptions(), deltas))) == 2


def group_of(tokens: int) -> RequestGroup[TokenEvent]:
    """A group whose events have all come."""
    group = RequestGroup[TokenEvent](["a"], lambda request_id: None)
    for token in range(tokens):
        group.receive(TokenEvent("a", token, "length" if token == tokens - 1 else None))
    return group


def test_a_backlog_does_not_hold_up_the_loop() -> None:
    async def read() -> int:
        group, num_turns = group_of(100), 0

        async def others() -> None:
            nonlocal num_turns
            while True:
                num_turns += 1
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(others())
        assert [event.token async for event in group] == [*range(100)]
        beside.cancel()
        return num_turns

    assert asyncio.run(read()) >= 99


def test_a_reader_that_is_cancelled_loses_no_event() -> None:
    async def read() -> list[int | None]:
        group = RequestGroup[TokenEvent](["a"], lambda request_id: None)
        reader = asyncio.ensure_future(anext(group))
        await asyncio.sleep(0)
        reader.cancel()
        for token in range(3):
            group.receive(TokenEvent("a", token, "length" if token == 2 else None))
        await asyncio.gather(reader, return_exceptions=True)
        return [event.token async for event in group]

    assert asyncio.run(read()) == [0, 1, 2]


PIECES = (b"a", b"", b"\r\n0\r\n\r\n", b"x" * 300, bytes(range(17)))
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
KNOWN_LENGTH = [("Content-Length", str(len(b"".join(PIECES))))]


def answers(
    connection: h11.Connection, requests: list[tuple[bytes, list[tuple[str, str]]]]
) -> list[bytes | None]:
    """Answer requests, one after the other, in pieces; return all that is written."""
    written: list[bytes | None] = []
    for request, headers in requests:
        connection.receive_data(request)
        connection.next_event()
        connection.next_event()
        written.append(connection.send(h11.Response(status_code=200, headers=headers)))
        pieces = (b"",) if request.startswith(b"HEAD") else PIECES
        written += [connection.send(h11.Data(data=piece)) for piece in pieces]
        written.append(connection.send(h11.EndOfMessage()))
        if connection.our_state is h11.DONE:
            connection.start_next_cycle()
    return written


@pytest.mark.parametrize(
    "requests",
    [
        [(GET, []), (GET, KNOWN_LENGTH), (GET, [])],
        [(GET, []), (GET.replace(b"GET", b"HEAD"), []), (GET, KNOWN_LENGTH)],
        [(GET, []), (GET.replace(b"1.1", b"1.0"), [])],
    ],
)
def test_bodies_are_written_as_h11_writes_them(
    requests: list[tuple[bytes, list[tuple[str, str]]]],
) -> None:
    found = answers(ChunkingConnection(h11.SERVER), requests)
    assert found == answers(h11.Connection(h11.SERVER), requests)


def test_a_piece_after_the_end_is_refused() -> None:
    connection = ChunkingConnection(h11.SERVER)
    connection.receive_data(GET)
    for event in (h11.Response(status_code=200, headers=[]), h11.EndOfMessage()):
        connection.send(event)
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"a"))
