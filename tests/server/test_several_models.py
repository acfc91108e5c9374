"""Several models in one server, of which all but the first are loaded when they are asked for."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sgate_serve.commands.serve import named_folders
from sgate_serve.errors import CheckpointError, SgateError
from sgate_serve.server import ServedModel, ServedNames, ServerOptions
from tests.server.encoders import encoder_of
from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, VOCAB_SIZE, model_of, refusal, serving, speaking, wait_until

BODY = {"prompt": "Hi", "max_tokens": 8}


class Loader:
    """Loads a model that says its name, and counts how often; it may be told to fail or to wait."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options
        self.count = 0
        self.error: Exception | None = None
        self.may_load = threading.Event()
        self.may_load.set()

    def __call__(self) -> ServedModel:
        self.count += 1
        self.may_load.wait(10)
        if self.error is not None:
            raise self.error
        return replace(model_of(speaking(self.name, **self.options)), name=self.name)


@contextmanager
def serving_with(*others: Callable[[], ServedModel], **options: Any) -> Iterator[httpx.Client]:
    named = {getattr(other, "name", "embedder"): other for other in others}
    with serving(lambda: model_of(speaking("first")), others=named, **options) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


def said(client: httpx.Client, **body: Any) -> tuple[str, str]:
    response = client.post("/v1/completions", json=BODY | body)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["model"], answer["choices"][0]["text"]


def cards(client: httpx.Client) -> dict[str, int | None]:
    return {card["id"]: card["max_model_len"] for card in client.get("/v1/models").json()["data"]}


def test_requests_go_to_the_model_that_they_name() -> None:
    other = Loader("other")
    with serving_with(other, lambda: replace(encoder_of("embed"), name="embedder")) as client:
        assert cards(client) == {MODEL: 512, "other": None, "embedder": None}
        assert said(client) == said(client, model=MODEL) == (MODEL, "first")
        assert other.count == 0
        assert said(client, model="other") == said(client, model="other") == ("other", "other")
        chat = {"messages": [{"role": "user", "content": "Hi"}], "model": "other"}
        answer = client.post("/v1/chat/completions", json=chat).json()
        assert answer["choices"][0]["message"]["content"] == "other"
        assert other.count == 1
        assert client.get("/v1/models/other").json()["max_model_len"] == 512
        tokens = client.post("/tokenize", json={"prompt": "Hi", "model": "other"})
        assert tokens.json()["max_model_len"] == 512
        wrong = client.post("/v1/embeddings", json={"input": "Hi", "model": "other"})
        assert refusal(wrong)["code"] == "wrong_endpoint"
        vectors = client.post("/v1/embeddings", json={"input": "Hi", "model": "embedder"})
        assert vectors.status_code == 200
        unknown = refusal(client.post("/v1/completions", json=BODY | {"model": "nobody"}))
        assert f"this server has '{MODEL}', 'other', 'embedder'" in unknown["message"]
        assert client.get("/v1/models/nobody").status_code == 404
        families = {
            family.name: family
            for family in text_string_to_metric_families(client.get("/metrics").text)
        }
        ended = families["vllm:request_success"].samples
        names = {s.labels["model_name"] for s in ended if s.name.endswith("_total")}
        assert names >= {MODEL, "other"}


def test_idle_models_make_room_and_busy_ones_stay() -> None:
    slow, other = Loader("slow", step_seconds=0.1), Loader("other")
    with serving_with(slow, other, max_loaded_models=2) as client:
        assert said(client, model="other") == ("other", "other")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(said, client, model="slow")
            wait_until(lambda: slow.count == 1)
            full = client.post("/v1/completions", json=BODY | {"model": "other"})
            assert full.status_code == 503
            assert "all of the 2 models that this server may hold are in use" in full.text
            assert running.result() == ("slow", "slow")
        assert cards(client) == {MODEL: 512, "slow": 512, "other": None}
        named = BODY | {"model": "other"}
        # The slot is free a moment after the answer.
        wait_until(lambda: client.post("/v1/completions", json=named).status_code == 200)
        assert (slow.count, other.count) == (1, 2)
        assert cards(client) == {MODEL: 512, "slow": None, "other": 512}


def test_bursts_that_change_models_stay_within_the_limit() -> None:
    loaders = [Loader(name) for name in "abc"]
    with serving_with(*loaders, max_loaded_models=2) as client, ThreadPoolExecutor(4) as pool:
        for name in "abcab":
            named = [BODY | {"model": name}] * 4
            answers = pool.map(lambda body: client.post("/v1/completions", json=body), named)
            assert {answer.status_code for answer in answers} == {200}
            assert sum(length is not None for length in cards(client).values()) == 2


def test_a_load_that_nobody_waits_for_counts_until_it_has_ended() -> None:
    slow, other = Loader("slow"), Loader("other")
    slow.may_load.clear()
    with serving_with(slow, other, max_loaded_models=2) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=BODY | {"model": "slow"}, timeout=0.3)
        full = client.post("/v1/completions", json=BODY | {"model": "other"})
        assert (full.status_code, other.count) == (503, 0)
        slow.may_load.set()
        named = BODY | {"model": "other"}
        wait_until(lambda: client.post("/v1/completions", json=named).status_code == 200)


def test_an_engine_that_failed_is_loaded_again() -> None:
    engines: list[HashEngine] = []

    def load() -> ServedModel:
        engines.append(HashEngine(VOCAB_SIZE))
        return replace(model_of(engines[-1]), name="other")

    load.name = "other"  # type: ignore[attr-defined]
    with serving_with(load) as client:
        assert said(client, model="other")[0] == "other"
        engines[0].fails.set()
        assert client.post("/v1/completions", json=BODY | {"model": "other"}).status_code == 500
        wait_until(lambda: cards(client)["other"] is None)
        assert said(client, model="other")[0] == "other"
        assert len(engines) == 2


def test_a_model_is_loaded_once_for_calls_that_come_together_and_again_after_a_failure() -> None:
    other = Loader("other")
    other.may_load.clear()
    other.error = CheckpointError("config.json is missing")
    with serving_with(other) as client:
        with ThreadPoolExecutor(3) as pool:
            calls = [
                pool.submit(client.post, "/v1/completions", json=BODY | {"model": "other"})
                for _ in range(3)
            ]
            wait_until(lambda: other.count == 1)
            assert client.get("/health").status_code == 200
            other.may_load.set()
            answers = [call.result() for call in calls]
        assert {answer.status_code for answer in answers} == {500}
        expected = "the model 'other' cannot be loaded: config.json is missing"
        assert refusal(answers[0])["message"] == expected
        other.error = None
        assert said(client, model="other") == ("other", "other")
        assert said(client) == (MODEL, "first")


def test_shutdown_does_not_wait_for_a_model_that_loads() -> None:
    other = Loader("other")
    other.may_load.clear()
    try:
        with ThreadPoolExecutor(1) as pool:
            with serving_with(other, grace_seconds=0.1) as client:
                # Not by the client, which is closed before the server has shut down.
                url = client.base_url.join("/v1/completions")
                call = pool.submit(httpx.post, url, json=BODY | {"model": "other"})
                wait_until(lambda: other.count == 1)
                start = time.monotonic()
            assert time.monotonic() - start < 5
            assert call.result().status_code == 503
    finally:
        other.may_load.set()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["dense"], "--model dense: expected NAME=FOLDER"),
        (["=f"], "--model =f: expected NAME=FOLDER"),
        (["a=f", "a=g"], "--model a=g: another model has the name a; choose one"),
        (["first=f"], "--model first=f: another model has the name first; choose one"),
    ],
)
def test_models_need_a_folder_and_a_name_of_their_own(pairs: list[str], message: str) -> None:
    with pytest.raises(SgateError, match=message):
        named_folders(pairs, ServedNames(("first",)))


def test_at_least_two_models_fit_a_limit() -> None:
    with pytest.raises(SgateError, match="max_loaded_models is 1; it must be at least 2"):
        ServerOptions(model=("a=f",), max_loaded_models=1)
    with pytest.raises(SgateError, match="--max-loaded-models has no effect without --model"):
        ServerOptions(max_loaded_models=2)
