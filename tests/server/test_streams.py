import threading
from typing import Any

import httpx
import pytest

from tests.server.hash_engine import HashEngine
from tests.server.live import (
    TOKENIZER,
    VOCAB_SIZE,
    events,
    hang_on,
    serving_engine,
    speaking,
    token_ids,
    wait_until,
)

TEXT = "the cat 🚀 座った sat on the mat"


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    return events(client.post("/v1/completions", json={"stream": True, **body}))


def test_stream_says_what_the_whole_answer_says(client: httpx.Client) -> None:
    body = {"prompt": ["the cat", "a gate"], "max_tokens": 30, "echo": True}
    whole = client.post("/v1/completions", json=body).json()
    chunks = stream(client, **body)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(piece["finish_reason"] is None for piece in own[:-1])


def test_characters_and_beginnings_of_stop_strings_come_whole() -> None:
    with serving_engine(speaking(TEXT)) as client:
        chunks = stream(client, prompt="a", max_tokens=100, stop=["sat on a", "never"])
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == TEXT
    assert len(texts) > 5
    assert not any("\ufffd" in text for text in texts)
    assert not any(text.endswith("sat") for text in texts)


def test_usage_comes_last_and_without_choices(client: httpx.Client) -> None:
    body = {"prompt": "the cat", "max_tokens": 4, "ignore_eos": True}
    chunks = stream(client, **body, stream_options={"include_usage": True})
    num_prompt = len(TOKENIZER.encode("the cat").ids)
    usage = {"prompt_tokens": num_prompt, "completion_tokens": 4, "total_tokens": num_prompt + 4}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in stream(client, **body))


def test_continuous_usage_counts_up(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": [5], "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
    chunks = stream(client, **body, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4]


def test_streams_of_several_clients_do_not_mix() -> None:
    prompts = [[index, 7] for index in range(8)]
    with serving_engine(HashEngine(VOCAB_SIZE, num_slots=3)) as client:
        body = {"max_tokens": 30, "return_token_ids": True, "ignore_eos": True}
        alone = [tokens(stream(client, prompt=prompt, **body)) for prompt in prompts]
        together: dict[int, list[int]] = {}

        def ask(index: int) -> None:
            together[index] = tokens(stream(client, prompt=prompts[index], **body))

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[index] for index in range(len(prompts))] == alone


def tokens(chunks: list[dict[str, Any]]) -> list[int]:
    return [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]


def test_first_token_arrives_while_the_engine_still_works() -> None:
    engine = HashEngine(VOCAB_SIZE, script=token_ids(TEXT), step_seconds=0.05)
    body = {"prompt": "a", "max_tokens": 100, "stream": True}
    with serving_engine(engine) as client, client.stream("POST", "/v1/completions", json=body) as r:
        assert next(r.iter_lines()).startswith("data: {")
        assert engine.num_steps < 20


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["running", "waiting"])
def test_client_that_hangs_up_frees_its_slot(stream: bool, when: str) -> None:
    engine = HashEngine(VOCAB_SIZE, num_slots=1, step_seconds=0.02, max_model_len=100_000)
    body = {"prompt": "a", "max_tokens": 90_000, "stream": stream, "ignore_eos": True}
    with serving_engine(engine) as client:
        clients = [hang_on(client, body) for _ in range(2)]
        wait_until(lambda: engine.stats().num_running == 1 and engine.stats().num_waiting == 1)
        first, second = clients
        gone, kept = (first, second) if when == "running" else (second, first)
        gone.close()
        wait_until(lambda: engine.stats().num_waiting == 0)
        assert engine.stats().num_running == 1
        kept.close()
        wait_until(lambda: not engine.has_work())
        metrics = client.get("/metrics").text
    assert (
        'request_success_total{finished_reason="abort",model_name="some/tiny-model"} 2.0' in metrics
    )


def test_engine_that_fails_ends_streams_with_an_error_and_health_is_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = HashEngine(VOCAB_SIZE, step_seconds=0.01)
    body = {"prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True}
    with serving_engine(engine) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            engine.fails.set()
            rest = [line for line in lines if line]
        assert '"error": {"message": "the engine failed and this server must be' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        health = client.get("/health")
        assert health.status_code == 503
        assert "the engine failed" in health.json()["error"]["message"]
        refused = client.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert "vllm:request_success_total" in client.get("/metrics").text
    assert "the hash engine was told to fail" in caplog.text


def test_engine_that_fails_is_a_500_for_a_whole_answer() -> None:
    engine = HashEngine(VOCAB_SIZE)
    engine.fails.set()
    with serving_engine(engine) as client:
        response = client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
