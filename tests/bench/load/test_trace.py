"""Traces of streams that arrive in any pieces, whole or broken."""

import json

import pytest

from sgate_serve.bench.load.trace import CUT, NO_TOKEN, StreamReader, Trace, message_of
from tests.bench.load.stub_server import DONE, event, token, usage


def read(*pieces: tuple[float, bytes]) -> Trace:
    """The trace of pieces that arrive at given times, of a request that was sent at 10."""
    trace = Trace(start=10.0, input_len=5)
    reader = StreamReader(trace)
    for now, piece in pieces:
        reader.feed(piece, now)
    reader.close()
    return trace


def delta(**fields: object) -> bytes:
    return event({"choices": [{"delta": fields, "finish_reason": None}]})


def test_times_of_a_completion() -> None:
    trace = read(
        (11.0, token("a")), (13.0, token("") + token("é")), (16.0, token("d") + usage(7, 5) + DONE)
    )
    assert trace.error == ""
    assert (trace.ttft, trace.itl, trace.latency) == (1.0, [2.0, 0.0, 3.0], 6.0)
    assert (trace.input_len, trace.output_len, trace.text) == (7, 5, "aéd")
    assert trace.tpot == pytest.approx(5 / 4)


def test_events_may_be_split_anywhere() -> None:
    whole = b": ping\r\n\r\n" + token("a").replace(b"\n", b"\r\n") + token("b") + usage(7, 2) + DONE
    for place in range(len(whole)):
        trace = read((11.0, whole[:place]), (12.0, whole[place:]))
        assert (trace.error, trace.text, trace.output_len) == ("", "ab", 2)
        assert trace.latency in (1.0, 2.0) and len(trace.itl) == 1


def test_the_role_of_a_chat_is_no_token() -> None:
    end = event({"choices": [{"delta": {}, "finish_reason": "length"}]})
    trace = read(
        (11.0, delta(role="assistant", content="")),
        (12.0, delta(content="a")),
        (14.0, delta(reasoning_content="b")),
        (15.0, end + DONE),
    )
    assert (trace.ttft, trace.itl, trace.text) == (2.0, [2.0, 1.0], "ab")
    # The server counted nothing, so its events are counted.
    assert (trace.input_len, trace.output_len) == (5, 3)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([DONE], NO_TOKEN),
        ([], NO_TOKEN),
        ([token("a")], CUT),
        (
            [token("a"), event({"error": {"message": "the engine\nhas died"}})],
            "the engine has died",
        ),
        ([b"data: {\n\n"], "not an event of OpenAI's API: b'{'"),
        ([b"data: [1]\n\n"], "not an event of OpenAI's API"),
        ([event({"choices": [7]})], "not an event of OpenAI's API"),
        ([event({"choices": {}}), event({"usage": 3})], "not an event of OpenAI's API"),
    ],
)
def test_what_is_no_answer_has_a_reason(pieces: list[bytes], error: str) -> None:
    trace = read(*[(11.0, piece) for piece in pieces])
    assert trace.error.startswith(error) and trace.output_len == 0


def test_messages_of_errors() -> None:
    assert message_of({"error": {"message": "no\nroom"}}) == "no room"
    assert message_of({"error": "no room"}) == "no room"
    assert message_of({"detail": "Not Found"}) == "Not Found"
    assert message_of({"message": "no room", "object": "error"}) == "no room"
    assert message_of(["odd"]) == json.dumps(["odd"])
