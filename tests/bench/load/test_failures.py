"""Servers that refuse, fail, stall or cut the stream: an error at first, figures under load."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.load.stub_server import DONE, GOOD, Answer, Body, Stub, serving, token
from tests.commands.running import run

SIZES = ("--input-len", "4", "--output-len", "3", "--num-prompts", "6", "--max-concurrency", "2")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


def measured(capsys: Capture, stub: Stub, folder: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Load the stub; return the record and what was printed."""
    path = folder / "record.json"
    status, out, err = run(capsys, "bench", "serve", stub.url, *SIZES, *words, "--json", path)
    record: dict[str, Any] = json.loads(path.read_text())
    answered = any(one["completed"] for one in record.get("servers", [record]))
    assert status == (0 if answered else 1), err
    return record, out


def refused(capsys: Capture, *words: str | Path) -> str:
    status, out, err = run(capsys, "bench", "serve", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err


def test_failures_under_load_are_counted_with_their_reasons(
    stub: Stub, capsys: Capture, tmp_path: Path
) -> None:
    busy = Answer(status=503, error={"error": {"message": "the queue is full"}})
    answers = {
        1: busy,
        2: Answer(pieces=(token(), token()), cuts=True),
        3: Answer(pieces=(token(), DONE[:9]), stalls=True),
        5: busy,
    }
    stub.answer = lambda body, number: answers.get(number, Answer())
    record, out = measured(capsys, stub, tmp_path, "--timeout", "0.3")
    assert (record["completed"], record["failed"], record["num_prompts"]) == (2, 4, 6)
    assert record["total_output_tokens"] == 6
    assert "failed: 2 × HTTP 503: the queue is full" in out
    assert "failed: 1 × the server cut the connection" in out
    assert "failed: 1 × nothing came for 0.3 s (--timeout)" in out


def test_a_load_that_fails_altogether_is_a_result(
    stub: Stub, capsys: Capture, tmp_path: Path
) -> None:
    stub.answer = lambda body, number: Answer(pieces=(DONE,)) if number else Answer()
    for words in ((), ("--request-rate", "500"), ("--duration", "0.2", "--num-prompts", "9")):
        record, out = measured(capsys, stub, tmp_path, *words)
        assert record["completed"] == 0 and record["failed"] > 0
        assert record["request_throughput"] == 0
        assert "× the stream ended before the first token" in out
        stub.bodies.clear()


def test_the_first_request_shows_what_the_server_says(stub: Stub, capsys: Capture) -> None:
    def error(status: int, message: str) -> None:
        answer = Answer(status=status, error={"error": {"message": message}})
        stub.answer = lambda body, number: answer

    error(400, "at most 8 tokens")
    assert f"{stub.url} refuses the first request: HTTP 400: at most 8" in refused(capsys, stub.url)
    error(401, "no key")
    assert "HTTP 401: no key; give its key as OPENAI_API_KEY" in refused(capsys, stub.url)
    error(404, "no model x")
    message = refused(capsys, stub.url, "--model", "x")
    assert "HTTP 404: no model x; correct --model, or leave it out" in message
    stub.answer = lambda body, number: Answer(pieces=(token(),), cuts=True)
    assert "refuses the first request: the server cut" in refused(capsys, stub.url)


def test_a_server_without_models(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    stub.models = {"data": []}
    assert "/v1/models lists no model; name one with --model" in refused(capsys, stub.url)
    stub.models = None
    assert "/v1/models answers HTTP 404: Not Found" in refused(capsys, stub.url)
    record, _ = measured(capsys, stub, tmp_path, "--model", "own")
    assert record["model_id"] == "own" and stub.bodies[0]["model"] == "own"


def test_what_a_server_refuses_is_not_sent(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    def answer(body: Body, number: int) -> Answer:
        for name in ("ignore_eos", "stream_options"):
            if name in body:
                return Answer(status=400, error={"error": {"message": f"unknown field {name}"}})
        if not isinstance(body["prompt"], str):
            return Answer(status=422, error={"detail": "prompt must be a string"})
        return Answer(pieces=(*GOOD[:3], DONE))

    stub.answer, stub.tokens = answer, list(range(40))
    record, out = measured(capsys, stub, tmp_path)
    assert record["server"]["prompts"] == "random words" and record["server"]["fields"] == []
    assert record["failed"] == 0 and record["total_output_tokens"] == 18
    assert "takes no ignore_eos" in out and "counts no tokens" in out


def test_ids_come_from_the_servers_tokenizer(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    stub.tokens = list(range(100, 140))
    record, _ = measured(capsys, stub, tmp_path, "--shared-prefix-len", "5")
    assert record["server"]["prompts"] == "random tokens"
    assert len(stub.bodies) == 7 and {len(body["prompt"]) for body in stub.bodies} == {9}
    assert {each for body in stub.bodies for each in body["prompt"]} <= set(stub.tokens)
    assert len({tuple(body["prompt"]) for body in stub.bodies}) == 7
    assert all(body["ignore_eos"] and body["max_tokens"] == 3 for body in stub.bodies)


def test_a_dataset_is_sent_in_its_order(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    chat = '{"messages": [{"role": "user", "content": "c"}], "output_tokens": 7}\n'
    path.write_text('{"prompt": "a"}\n' + chat)
    answer = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
    stub.answer = lambda body, number: Answer(pieces=(answer, DONE))
    words = ("--dataset", path, "--max-concurrency", "1", "--slo", "e2el:60000", "ttft:60000")
    status, out, _ = run(capsys, "bench", "serve", stub.url, *words)
    assert status == 0 and "dataset, " in out and "requests/s that meet --slo" in out
    sent = [body["messages"][0]["content"] for body in stub.bodies[1:]]
    assert sent == ["a", "c"] and set(stub.paths) == {"/v1/chat/completions"}
    assert [body["max_tokens"] for body in stub.bodies[1:]] == [64, 7]
    assert ["ignore_eos" in body for body in stub.bodies[1:]] == [False, True]


def test_two_servers_take_turns(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    order: list[str] = []
    stub.answer = lambda body, number: order.append("A") or Answer()  # type: ignore[func-returns-value]
    other = Stub(lambda body, number: order.append("B") or Answer())  # type: ignore[func-returns-value]
    sizes = ("--num-prompts", "2", "--rounds", "2", "--max-concurrency", "1")
    with serving(other):
        record, out = measured(capsys, stub, tmp_path, *sizes, "--against", other.url)
    assert "".join(order) == "AB" + 2 * "AABBBBAA"
    a, b = record["servers"]
    assert a["server"]["url"] == stub.url and b["completed"] == 8
    assert [body["prompt"] for body in stub.bodies] == [body["prompt"] for body in other.bodies]
    ratio = record["ratios"]["request_throughput"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "A / B" in out and "\nrequests/s " in out


def test_a_sweep_ends_where_the_throughput_does(
    stub: Stub, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    sizes = ("--num-prompts", "4", "--input-len", "4", "--output-len", "3", "--json", path)
    status, out, _ = run(capsys, "bench", "serve", stub.url, "--sweep", *sizes)
    assert status == 0 and "most output tokens/s: " in out
    record = json.loads(path.read_text())
    users = [each["max_concurrency"] for each in record["sweep"]]
    assert users == [2**n for n in range(len(users))] and len(users) >= 2
    prompts = [body["prompt"] for body in stub.bodies]
    assert len(set(prompts)) == len(prompts) - (len(users) - 1)  # but for the trials


def test_ctrl_c_shows_what_was_measured(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident or 0

    def answer(body: Body, number: int) -> Answer:
        if number == 4:
            signal.pthread_kill(main, signal.SIGINT)
            return Answer(pieces=(), stalls=True)
        return Answer()

    stub.answer = answer
    path = tmp_path / "r.json"
    try:
        words = (*SIZES, "--max-concurrency", "1", "--json", path)
        status, out, err = run(capsys, "bench", "serve", stub.url, *words)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, err.splitlines()[-1]) == (130, "sgate bench: interrupted")
    assert "3 requests in " in out and "Traceback" not in err
    record = json.loads(path.read_text())
    assert record["interrupted"] is True and record["completed"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("http://127.0.0.1:1",), "http://127.0.0.1:1: no server answers (All connection"),
        (("127.0.0.1:8000",), "127.0.0.1:8000: give a URL such as http://127.0.0.1:8000"),
        (("http://[",), "http://[: "),
        (("URL", "--against", "/x"), "--against /x: give a URL such as http://127.0.0.1:8000"),
        (("URL", "--against", "URL/v1/"), "the same server, whose cache would know the prompts"),
        (("URL", "--rounds", "2"), "--rounds has an effect only with --against; leave it out"),
        (("URL", "--sweep", "--against", "http://b"), "--sweep loads one server; leave out --ag"),
        (("URL", "--slo", "tpto:5"), "--slo tpto:5: unknown; "),
        (
            ("URL", "--input-len", "90", "--output-len", "11"),
            "90 + 11 tokens are more than the 100",
        ),
        (("URL", "--dataset", "/none.jsonl"), "--dataset /none.jsonl cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_line(
    stub: Stub, capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    stub.models = {"data": [{"id": "stub", "max_model_len": 100}]}
    assert message in refused(capsys, *(word.replace("URL", stub.url) for word in words))


def test_a_prompt_of_the_dataset_that_is_too_long_is_named(
    stub: Stub, capsys: Capture, tmp_path: Path
) -> None:
    stub.models = {"data": [{"id": "stub", "max_model_len": 10}]}
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"prompt": [1], "output_tokens": 2}\n\n{"prompt": [1, 2], "output_tokens": 9}\n'
    )
    assert "line 3: its 2 + 9 tokens" in refused(capsys, stub.url, "--dataset", path)
