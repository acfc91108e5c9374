"""The streaming benchmark, on checkpoints so small that only its own parts are tested."""

from pathlib import Path

import pytest

from benchmarks import streaming
from benchmarks.streaming import GATES, PLAN, SCAN, StreamingOptions, run, run_command
from benchmarks.synthetic import LLAMA_70B, write_gates, write_headers_only
from sgate_serve.checkpoint.reader import Checkpoint
from tests.benchmarks.tiny import TINY

# More GiB than any machine has, so that memory is not filled.
ALL = 1e6


def test_record_holds_every_run_and_its_goals() -> None:
    record = run(StreamingOptions(rounds=2, seed=3, free=ALL), TINY, TINY)
    assert record["checkpoint"]["shards"] == 5
    assert record["command"].endswith("--gib 4.0 --closed 0.3 --rounds 2 --seed 3 --free 1000000.0")
    assert record["speed_of_copy"].keys() == {GATES, SCAN}
    for name in (GATES, SCAN, PLAN):
        result = record["results"][name]
        assert len(result["runs"]) == 2
        # An interpreter with numpy takes about 40 MB; a tiny model adds very little.
        assert 20 * 10**6 < result["peak_rss_bytes"] < 200 * 10**6
        assert result["cpu_seconds"]["median"] > 0
    assert set(record) >= {"goals", "hardware", "versions", "options"}


def test_memory_is_filled_until_enough_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = streaming.Inputs.within(tmp_path)
    inputs.dense.mkdir()
    inputs.holes.write_bytes(bytes(2**26))
    left = iter([3, 2, 1, 0])
    monkeypatch.setattr(streaming, "_free_memory", lambda: next(left))
    streaming.fill_memory(inputs, free_bytes=1)
    assert list(left) == [0]


def test_plan_of_a_70b_stays_within_its_memory(tmp_path: Path) -> None:
    write_headers_only(tmp_path / "model", LLAMA_70B)
    base = Checkpoint.open(tmp_path / "model")
    write_gates(tmp_path / "gates", base, closed=0.3, seed=0)
    command = ["plan", str(tmp_path / "model"), "--gates", str(tmp_path / "gates")]
    usage = run_command([*command, "--out", str(tmp_path / "plan.json")])
    assert usage.peak_rss_bytes is not None
    assert usage.peak_rss_bytes < streaming.GOALS["plan_peak_rss_bytes"]
    assert usage.cpu_seconds < streaming.GOALS["plan_seconds"]


def test_a_command_that_fails_shows_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"failed:\n.*no such folder"):
        run_command(["plan", str(tmp_path / "missing")])


def test_a_command_that_imports_torch_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_headers_only(tmp_path / "model", TINY)
    monkeypatch.setattr(streaming, "COMMAND", f"import torch\n{streaming.COMMAND}")
    with pytest.raises(RuntimeError, match="torch was imported"):
        run_command(["plan", str(tmp_path / "model")])


def test_failing_to_write_checkpoints_ends_the_measurement() -> None:
    with pytest.raises(RuntimeError, match="the checkpoints could not be written"):
        run(StreamingOptions(rounds=1, free=ALL), {**TINY, "num_hidden_layers": "three"}, TINY)
