import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from sgate_serve import __version__
from sgate_serve.server.served_model import ServedModel, ServedNames
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    MODEL,
    VOCAB_SIZE,
    hang_on,
    model_of,
    refusal,
    serving,
    serving_engine,
    serving_model,
    wait_until,
)


def test_socket_opens_before_the_model_is_loaded() -> None:
    may_load = threading.Event()

    def load() -> ServedModel:
        may_load.wait()
        return model_of(HashEngine(VOCAB_SIZE))

    with serving(load) as client:
        for path in ("/health", "/v1/models"):
            response = client.get(path)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "2"
            assert "still loading; try again when /health" in refusal(response)["message"]
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        assert client.get("/version").status_code == 200
        assert client.get("/metrics").text == ""
        may_load.set()
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.get("/health").json() == {"status": "ready"}
        assert "vllm:num_requests_running" in client.get("/metrics").text
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_load_counts_calls_that_run_or_wait() -> None:
    engine = HashEngine(VOCAB_SIZE, num_slots=1, step_seconds=0.01, max_model_len=10_000)
    with serving_engine(engine) as client:
        assert client.get("/load").json() == {"server_load": 0}
        body = {"prompt": ["a", "b"], "max_tokens": 5_000, "ignore_eos": True}
        with hang_on(client, body), hang_on(client, body):
            wait_until(lambda: client.get("/load").json() == {"server_load": 2})
        wait_until(lambda: client.get("/load").json() == {"server_load": 0})


def test_models_lists_the_served_model(client: httpx.Client) -> None:
    listing = client.get("/v1/models").json()
    assert listing["object"] == "list"
    [card] = listing["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 512)
    for name in (MODEL, "tiny-model"):
        assert client.get(f"/v1/models/{name}").json() == card
    response = client.get("/v1/models/gpt")
    assert response.status_code == 404
    assert refusal(response)["code"] == "model_not_found"


def test_every_served_name_is_listed_and_an_alias_only_accepted() -> None:
    model = replace(
        model_of(HashEngine(VOCAB_SIZE)), more_names=("second",), aliases=("/models/tiny",)
    )
    with serving_model(model) as client:
        ids = [card["id"] for card in client.get("/v1/models").json()["data"]]
        assert ids == [MODEL, "second"]
        assert client.get("/v1/models/second").json()["id"] == "second"
        for name in (MODEL, "second", "/models/tiny"):
            body = {"model": name, "prompt": "a", "max_tokens": 1}
            answer = client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["model"]) == (200, MODEL)
        answer = client.post("/v1/completions", json={"model": "third", "prompt": "a"})
        assert f"this server has '{MODEL}', 'second'" in refusal(answer)["message"]


def test_a_model_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-pruned"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for location in (str(folder), f"{folder}/", ".", "../my-pruned/"):
        names = ServedNames.of(location)
        assert names.listed == ("my-pruned",)
        assert {location, str(folder)} <= set(names.aliases)
    assert ServedNames.of(".", ["a", "b", "a"]) == ServedNames(("a", "b"))
    assert ServedNames.of("owner/model") == ServedNames(("owner/model",), ("model",))


def test_version_and_documentation(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": __version__}
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/health"} <= paths.keys()
    assert client.get("/docs").status_code == 200


def test_metrics_have_prometheus_content_type(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"] == CONTENT_TYPE_LATEST
    assert response.headers["content-type"].startswith("text/plain; version=")
    documented = client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]
    assert documented["200"]["content"].keys() == {CONTENT_TYPE_LATEST}


def values_of(client: httpx.Client) -> dict[tuple[str, str | None], float]:
    """The served model's metrics by name and reason, without the buckets of histograms."""
    return {
        (sample.name.removeprefix("vllm:"), sample.labels.get("finished_reason")): sample.value
        for family in text_string_to_metric_families(metrics(client))
        for sample in family.samples
        if sample.labels["model_name"] == MODEL and "le" not in sample.labels
    }


def test_metrics_count_what_happened_under_vllms_names() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE)) as client:
        body = {"prompt": [[5, 6], [7, 8, 9]], "max_tokens": 4, "ignore_eos": True}
        for stream in (False, True):
            client.post("/v1/completions", json={**body, "stream": stream})
        values = values_of(client)
    for name, expected in {
        "prompt_tokens_total": 10,
        "generation_tokens_total": 16,
        "request_prompt_tokens_count": 4,
        "request_prompt_tokens_sum": 10,
        "request_generation_tokens_count": 4,
        "request_generation_tokens_sum": 16,
        "time_to_first_token_seconds_count": 4,
        "inter_token_latency_seconds_count": 12,
        "request_time_per_output_token_seconds_count": 4,
        "e2e_request_latency_seconds_count": 4,
        "request_queue_time_seconds_count": 4,
        "request_prefill_time_seconds_count": 4,
        "request_decode_time_seconds_count": 4,
        "request_inference_time_seconds_count": 4,
        "request_params_max_tokens_sum": 16,
        "num_preemptions_total": 0,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
    }.items():
        assert values[name, None] == expected
    assert values["request_success_total", "length"] == 4
    mean = values["request_time_per_output_token_seconds_sum", None] / 4
    gap = values["inter_token_latency_seconds_sum", None] / 12
    assert mean == pytest.approx(gap)
    queue, prefill, decode, inference, first, whole = (
        values[f"{name}_seconds_sum", None]
        for name in (
            *("request_queue_time", "request_prefill_time", "request_decode_time"),
            *("request_inference_time", "time_to_first_token", "e2e_request_latency"),
        )
    )
    assert queue >= 0 and queue + prefill == pytest.approx(first)
    assert inference == pytest.approx(prefill + decode) and queue + inference <= whole


def test_metrics_count_a_prompt_once_also_if_nothing_is_generated() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE)) as client:
        several = {"prompt": [[5, 6], [7]], "n": 3, "max_tokens": 1, "ignore_eos": True}
        client.post("/v1/completions", json=several)
        client.post("/v1/completions", json={"prompt": [8] * 10, "max_tokens": 0, "echo": True})
        values = values_of(client)
    assert values["prompt_tokens_total", None] == values["request_prompt_tokens_sum", None] == 13
    assert values["request_prompt_tokens_count", None] == 3
    assert values["request_generation_tokens_count", None] == 7
    assert values["generation_tokens_total", None] == 6
    assert values["time_to_first_token_seconds_count", None] == 6
    assert values["request_time_per_output_token_seconds_count", None] == 0


def test_lengths_have_buckets_up_to_the_models() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE, max_model_len=60)) as client:
        lines = metrics(client).splitlines()
    name = "vllm:request_prompt_tokens_bucket"
    bounds = [line.split('le="')[1].split('"')[0] for line in lines if line.startswith(name)]
    assert bounds == ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "+Inf"]


def test_gauges_show_what_runs_and_waits() -> None:
    engine = HashEngine(VOCAB_SIZE, num_slots=2, step_seconds=0.02, max_model_len=100_000)
    body = {"prompt": [[1]] * 5, "max_tokens": 90_000, "stream": True, "ignore_eos": True}
    with (
        serving_engine(engine) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        # Dropping the iterator would close the connection.
        lines = response.iter_lines()
        next(lines)
        wait_until(
            lambda: 'num_requests_running{model_name="some/tiny-model"} 2.0' in metrics(client)
        )
        assert 'num_requests_waiting{model_name="some/tiny-model"} 3.0' in metrics(client)
        assert 'kv_cache_usage_perc{model_name="some/tiny-model"} 1.0' in metrics(client)


def metrics(client: httpx.Client) -> str:
    return client.get("/metrics").text


def test_each_request_is_one_log_line_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), serving_engine(HashEngine(VOCAB_SIZE)) as client:
        answered = client.post("/v1/completions", json={"prompt": "a secret"})
        missing = client.get("/no%0Awhere")
    records = [record for record in caplog.records if record.name.startswith("sgate_serve")]
    lines = [record.getMessage() for record in records]
    request_id = answered.headers["x-request-id"]
    assert answered.json()["id"] == f"cmpl-{request_id}"
    [line] = [line for line in lines if request_id in line]
    assert line.startswith(f'request id={request_id} method=POST path="/v1/completions" status=200')
    [line] = [line for line in lines if missing.headers["x-request-id"] in line]
    assert 'path="/no\\nwhere" status=404' in line
    assert not any("secret" in line or "/health" in line for line in lines)
