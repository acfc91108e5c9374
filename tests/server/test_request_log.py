"""Ids and log lines of requests, as text and as JSON."""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from sgate_serve.errors import SgateError
from sgate_serve.server import ServerOptions
from sgate_serve.server.request_log import JsonFormatter, start_logging
from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, VOCAB_SIZE, serving_engine


@pytest.fixture
def formatter() -> JsonFormatter:
    return JsonFormatter()


@pytest.fixture
def root_handlers() -> Iterator[None]:
    """Give the root logger's handlers and level back, which belong to pytest."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def request_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "request")]


@pytest.mark.parametrize("given", ["abc-123", "trace:7/span=9+x@y~z.w", "x" * 128])
def test_sane_id_of_the_client_is_taken_over(given: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), serving_engine(HashEngine(VOCAB_SIZE)) as client:
        headers = {"x-request-id": given}
        response = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert response.headers["x-request-id"] == given
    assert response.json()["id"] == f"cmpl-{given}"
    assert f"id={given} " in caplog.text


@pytest.mark.parametrize("given", ["", "a b", 'a"b', "x" * 129, "é"])
def test_any_other_id_is_replaced(given: str) -> None:
    with serving_engine(HashEngine(VOCAB_SIZE)) as client:
        response = client.get("/version", headers=[(b"x-request-id", given.encode())])
    assert len(response.headers["x-request-id"]) == 32


def test_clients_with_one_id_do_not_meet() -> None:
    engine = HashEngine(VOCAB_SIZE, step_seconds=0.01)
    headers = {"x-request-id": "the-same"}
    answers: dict[int, Any] = {}
    with serving_engine(engine) as client:

        def ask(token: int) -> None:
            body = {"prompt": [token], "max_tokens": 20, "return_token_ids": True}
            sent = client.post("/v1/completions", json=body, headers=headers)
            answers[token] = sent.json()["choices"][0]["token_ids"]

        threads = [threading.Thread(target=ask, args=(token,)) for token in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = dict(answers)
        for token in together:
            ask(token)
    assert together == answers


@pytest.mark.parametrize("stream", [False, True])
def test_json_line_has_the_request_and_what_it_cost(
    stream: bool, caplog: pytest.LogCaptureFixture, formatter: JsonFormatter
) -> None:
    body = {"prompt": [[5, 6], [7]], "max_tokens": 3, "ignore_eos": True, "stream": stream}
    with caplog.at_level("INFO"), serving_engine(HashEngine(VOCAB_SIZE)) as client:
        response = client.post("/v1/completions", json=body)
    [record] = request_records(caplog)
    line = json.loads(formatter.format(record))
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line.pop("ms") > 0
    assert line == {
        "level": "INFO",
        "logger": "sgate_serve.server.request_log",
        "message": "request",
        "id": response.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": MODEL,
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "finish_reasons": ["length", "length"],
    }
    words = "prompt_tokens=3 completion_tokens=6 finish_reasons=length,length"
    assert record.getMessage().endswith(f"model={MODEL} {words}")


def test_refused_request_has_no_costs_and_path_cannot_break_the_line(
    caplog: pytest.LogCaptureFixture, formatter: JsonFormatter
) -> None:
    with caplog.at_level("INFO"), serving_engine(HashEngine(VOCAB_SIZE)) as client:
        client.get("/a%0Ab%22")
    [record] = request_records(caplog)
    written = formatter.format(record)
    assert "\n" not in written + record.getMessage()
    line = json.loads(written)
    assert (line["path"], line["status"]) == ('/a\nb"', 404)
    assert "prompt_tokens" not in line


def test_json_line_of_an_exception_holds_its_traceback(formatter: JsonFormatter) -> None:
    try:
        raise ZeroDivisionError("two\nlines")
    except ZeroDivisionError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "n=%d", (5,), sys.exc_info())
    written = formatter.format(record)
    assert "\n" not in written
    line = json.loads(written)
    assert line["message"] == "n=5"
    assert "ZeroDivisionError: two\nlines" in line["exception"]


@pytest.mark.usefixtures("root_handlers")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_process_logs_in_the_format_asked_for(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(log_format)
    logging.getLogger("uvicorn").warning("hello")
    written = capsys.readouterr().err
    if log_format == "json":
        assert json.loads(written)["message"] == "hello"
    else:
        assert written.endswith(" WARNING uvicorn hello\n")


def test_unknown_format_is_refused() -> None:
    with pytest.raises(SgateError, match="log_format is 'xml'; it must be text or json"):
        ServerOptions(log_format="xml")
