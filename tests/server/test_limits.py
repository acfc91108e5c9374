"""Limits on queued requests and on their time."""

from typing import Any

import httpx
import pytest

from sgate_serve.errors import SgateError
from sgate_serve.server import ServerOptions
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, events, hang_on, refusal, serving_engine, wait_until

LONG = {"prompt": [5], "max_tokens": 90_000, "ignore_eos": True}


def slow(**options: Any) -> HashEngine:
    return HashEngine(VOCAB_SIZE, step_seconds=0.01, max_model_len=100_000, **options)


def test_full_queue_is_a_429_until_a_place_is_free() -> None:
    engine = slow(num_slots=2)
    with serving_engine(engine, max_queue=3) as client:
        hanging = [hang_on(client, {**LONG, "prompt": [[1], [2]]})]
        wait_until(lambda: "num_requests_running{" in metrics(client, 2))
        hanging.append(hang_on(client, {**LONG, "n": 3}))
        wait_until(lambda: engine.stats().num_waiting == 3)
        response = client.post("/v1/completions", json={"prompt": "a"})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        error = refusal(response)
        assert error["code"] == "queue_full"
        assert error["type"] == "rate_limit_error"
        assert error["message"] == (
            "the queue of this server, which holds 3, is full; try again later"
        )
        for connection in hanging:
            connection.close()
        wait_until(lambda: not engine.has_work())
        wait_until(lambda: client.post("/v1/completions", json={"prompt": "a"}).is_success)


def metrics(client: httpx.Client, num_running: int) -> str:
    """The lines of /metrics that show so many running requests."""
    lines = client.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if line.endswith(f" {num_running}.0"))


def test_a_call_counts_each_of_its_prompts_and_choices() -> None:
    with serving_engine(slow(num_slots=1), max_queue=4) as client:
        body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).is_success
        response = client.post("/v1/completions", json={**body, "n": 3})
        assert response.status_code == 400
        assert refusal(response)["message"] == (
            "this call has 6 prompts and choices, but the queue of this server holds 4; "
            "send fewer in one call"
        )


def test_request_over_its_time_is_a_504_and_leaves_its_slot() -> None:
    engine = slow(num_slots=1)
    with serving_engine(engine, request_timeout_seconds=0.2) as client:
        response = client.post("/v1/completions", json={**LONG, "n": 2})
        assert response.status_code == 504
        error = refusal(response)
        assert (error["type"], error["code"]) == ("server_error", "request_timeout")
        assert "took longer than 0.2 s, this server's limit; ask for fewer" in error["message"]
        wait_until(lambda: not engine.has_work())
        body = {"prompt": "a", "max_tokens": 1}
        assert client.post("/v1/completions", json=body).is_success


def test_stream_over_its_time_ends_with_the_error_and_done() -> None:
    engine = slow()
    with serving_engine(engine, request_timeout_seconds=0.2) as client:
        chunks = events(client.post("/v1/completions", json={**LONG, "stream": True}))
        assert "choices" in chunks[0]
        assert chunks[-1]["error"]["code"] == "request_timeout"
        wait_until(lambda: not engine.has_work())


def test_a_request_in_time_is_not_disturbed_later() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), request_timeout_seconds=1) as client:
        for _ in range(50):
            assert client.post("/v1/completions", json={"prompt": "a"}).is_success


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_hangs_up_is_gone_after_the_step_that_runs(stream: bool) -> None:
    engine = HashEngine(VOCAB_SIZE, step_seconds=0.3, max_model_len=100_000)
    with serving_engine(engine) as client:
        connection = hang_on(client, {**LONG, "stream": stream})
        wait_until(lambda: engine.num_steps >= 1)
        before = engine.num_steps
        connection.close()
        wait_until(lambda: not engine.has_work())
        # The step that was running, and one that began while the news was on its way.
        assert engine.num_steps <= before + 2


@pytest.mark.parametrize("name", ["max_queue", "request_timeout_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_let_nothing_through_are_refused(name: str, value: float) -> None:
    with pytest.raises(SgateError, match=f"{name} is {value}; it must be positive"):
        ServerOptions(**dict[str, Any]({name: value}))
