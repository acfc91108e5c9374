"""The soak: a server without faults passes all of it, and what goes wrong is found."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak.__main__ import SoakOptions, load, run
from benchmarks.soak.answers import AnswerError
from benchmarks.soak.traffic import Traffic
from benchmarks.soak.watch import Sample, growth, growth_complaints, process_at, sampling
from sgate_serve.engines.contract import TokenEvent
from sgate_serve.errors import BenchError
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, serving_engine
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.tool_templates import QWEN25

SIZES = {"max_position_embeddings": 4096}


class LeakyEngine(HashEngine):
    """Requests that run together get tokens of each other."""

    def step(self) -> Sequence[TokenEvent]:
        events = super().step()
        if len(events) < 2:
            return events
        return [replace(event, token=events[0].token) for event in events]


def test_a_server_without_faults_passes(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, chat_template=QWEN25, **SIZES)
    with serving_folder(folder, slots=4) as client:
        url = str(client.base_url)
        assert process_at(url) == os.getpid()
        record = run(SoakOptions(url=url, minutes=0.07, clients=3, health_seconds=5.0))
    found = record["results"]
    # Of the process of the tests, whose memory may grow.
    assert [failure for failure in found["failures"] if " grew " not in failure] == []
    assert len(found["requests"]) == 11
    assert sum(count["requests"] for count in found["requests"].values()) > 10
    assert found["cached_tokens"] > 0
    assert found["health_seconds"]["count"] > 5
    assert str(tmp_path) not in record["command"]


def test_wrong_and_slow_answers_are_found() -> None:
    skip = "choices,structured_output,tool_calls,prefixes,cancellations,half_sent"
    options = SoakOptions(minutes=0.03, clients=3, health_seconds=1e-9, skip=skip)
    failures, names = list[str](), set[str]()
    with serving_engine(LeakyEngine(VOCAB_SIZE, step_seconds=0.005)) as client:
        # A busy machine answers a few requests only in that time.
        for _ in range(10):
            record = run(replace(options, url=str(client.base_url)))
            failures += record["results"]["failures"]
            names |= {
                failure.partition(":")[0] for failure in failures if "without load" in failure
            }
            if names >= {"completions", "chats"}:
                break
    assert names >= {"completions", "chats"}
    assert any(failure.startswith("/health took up to 0.") for failure in failures)


def test_answers_that_cannot_be_had_end_the_soak() -> None:
    with (
        serving_engine(HashEngine(VOCAB_SIZE)) as client,
        pytest.raises(AnswerError, match=r"completions answered 400: .*does not show `tools`"),
    ):
        run(SoakOptions(url=str(client.base_url), skip="structured_output"))


def test_unknown_requests_and_servers_elsewhere_are_refused() -> None:
    with pytest.raises(BenchError, match="--skip tools: give some of completions, choices, "):
        Traffic(["tools"])
    with pytest.raises(BenchError, match=r"listens at http://127\.0\.0\.1:1; start one here"):
        process_at("http://127.0.0.1:1")


def test_a_server_that_ends_ends_the_soak() -> None:
    with subprocess.Popen(["sleep", "0.3"]) as process, sampling(process.pid, 0.05) as samples:
        process.wait()
        with pytest.raises(BenchError, match="the server ended under the load; what failed first"):
            load("http://127.0.0.1:1", process.pid, Traffic([]), SoakOptions(minutes=1.0))
    assert samples and samples[-1].seconds < 5


def test_growth_is_that_after_the_warm_up() -> None:
    def samples(start: int, more: int) -> list[Sample]:
        """A process that grows a lot at first, and then by so much a second."""
        own = [start if second < 20 else 1000 + more * (second - 20) for second in range(100)]
        return [Sample(second, 1e6 * value, value, 9) for second, value in enumerate(own)]

    assert growth_complaints(growth(samples(100, 0))) == []
    assert growth_complaints(growth(samples(2000, -1))) == []
    assert growth_complaints(growth(samples(100, 2))) == [
        "rss_bytes grew from 1025000000 to 1133000000",
        "handles grew from 1025 to 1133",
    ]
