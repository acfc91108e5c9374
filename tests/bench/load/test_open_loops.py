"""Ramps and traces against a server: when requests are sent, with what, and what is recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.load.stub_server import Stub, serving
from tests.bench.load.test_failures import Capture, measured, refused
from tests.commands.running import run

RAMP = ("--ramp-up-strategy", "linear", "--ramp-up-start-rps", "10", "--ramp-up-end-rps", "200")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub(tokens=list(range(1000, 1400)))) as stub:
        yield stub


def write_trace(folder: Path, *times: float) -> Path:
    """Write a trace in which the first two prompts share their first block."""
    path = folder / "trace.jsonl"
    hashes = [[1, 2], [1, 3], [4]] + [[]] * (len(times) - 3)
    records = [
        {"timestamp": time, "input_length": 520, "output_length": 3, "hash_ids": ids}
        for time, ids in zip(times, hashes, strict=True)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sent_at(record: dict[str, Any]) -> list[float]:
    starts = np.asarray(record["start_times"])
    times: list[float] = np.sort(starts - starts.min()).tolist()
    return times


def replay(
    capsys: Capture, stub: Stub, folder: Path, path: Path, *words: str
) -> tuple[dict[str, Any], str]:
    """Send a trace to the stub; return the record and what was printed."""
    file = folder / "record.json"
    words = ("bench", "serve", stub.url, *words)
    status, out, err = run(capsys, *words, "--dataset", path, "--json", file)
    assert status == 0, err
    record: dict[str, Any] = json.loads(file.read_text())
    return record, out


def test_a_ramp_is_sent_and_recorded_as_vllm_does(
    stub: Stub, capsys: Capture, tmp_path: Path
) -> None:
    words = (*RAMP, "--burstiness", "1000", "--num-prompts", "20", "--max-concurrency", "90")
    record, out = measured(capsys, stub, tmp_path, *words)
    assert "; 10 to 200 requests/s, linear, at most 90 at a time; " in out
    assert record["completed"] == 20 and record["request_rate"] == "inf"
    assert record["ramp_up_strategy"] == "linear"
    assert (record["ramp_up_start_rps"], record["ramp_up_end_rps"]) == (10, 200)
    gaps = np.diff(sent_at(record))
    # The second request comes after 1/20 s, the last after 1/200 s.
    assert 0.03 < gaps[0] < 0.5 and np.mean(gaps[-5:]) < gaps[0] / 2


def test_a_ramp_takes_a_duration(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ("--duration", "0.5", "--input-len", "4", "--output-len", "3", "--json", path)
    status, _, err = run(capsys, "bench", "serve", stub.url, *RAMP, *words)
    assert status == 0, err
    record = json.loads(path.read_text())
    assert record["completed"] > 10 and 0.3 < sent_at(record)[-1] < 2


def test_a_trace_is_sent_at_its_times(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = write_trace(tmp_path, 5000, 5000, 5150, 5400)
    record, out = replay(capsys, stub, tmp_path, path)
    assert "; at the times of the dataset; random tokens, " in out
    assert record["timed_trace"] is True and record["max_concurrency"] is None
    assert sent_at(record) == pytest.approx([0, 0, 0.15, 0.4], abs=0.15)
    trial, *prompts = [body["prompt"] for body in stub.bodies]
    assert all(body["ignore_eos"] and body["max_tokens"] == 3 for body in stub.bodies)
    assert {len(prompt) for prompt in prompts} == {520} and set(prompts[0]) <= set(
        stub.tokens or ()
    )
    starts = [tuple(prompt[:512]) for prompt in prompts]
    assert starts[0] == starts[1] and len(set(starts)) == 3 and prompts[0] != prompts[1]
    assert tuple(trial[:512]) not in starts


def test_num_prompts_and_duration_cut_a_trace(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = write_trace(tmp_path, 0, 10, 20, 60_000)
    assert replay(capsys, stub, tmp_path, path, "--num-prompts", "2")[0]["completed"] == 2
    assert replay(capsys, stub, tmp_path, path, "--duration", "1")[0]["completed"] == 3
    cut = replay(capsys, stub, tmp_path, path, "--duration", "1", "--max-concurrency", "1")[0]
    assert (cut["completed"], cut["max_concurrency"]) == (3, 1)


def test_servers_by_turns_get_the_same_trace(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = write_trace(tmp_path, 0, 10, 20)
    with serving(Stub(tokens=stub.tokens)) as other:
        words = ("--against", other.url, "--rounds", "1", "--num-prompts", "2")
        replay(capsys, stub, tmp_path, path, *words)
        sent = [[body["prompt"] for body in each.bodies[1:]] for each in (stub, other)]
    assert sorted(sent[0]) == sorted(sent[1])
    one, again = sent[0][:2], sent[0][2:]
    for prompts in (one, again):
        assert prompts[0][:512] == prompts[1][:512]
    assert one[0][:512] != again[0][:512]


def test_what_a_trace_cannot_be_sent_with(stub: Stub, capsys: Capture, tmp_path: Path) -> None:
    path = write_trace(tmp_path, 0, 10, 20)
    for flags in (("--request-rate", "4"), ("--sweep",), RAMP):
        message = refused(capsys, stub.url, "--dataset", path, *flags)
        assert f"{flags[0]}: --dataset {path} has the times of its requests" in message
    stub.models = {"data": [{"id": "stub", "max_model_len": 100}]}
    message = refused(capsys, stub.url, "--dataset", path)
    assert "line 1: its 520 + 3 tokens are more than the 100" in message
