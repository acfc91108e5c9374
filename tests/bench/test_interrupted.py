"""Ctrl-C while models are measured: whole rounds are shown and written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import stub_engine
from tests.bench.test_compare import models
from tests.bench.test_offline import Models
from tests.commands.running import run

__all__ = ["models"]

COMPARE = ("compare", "--rounds", "4", "--decode-steps", "2", "--context-tokens", "4")
SIZES = ("--prefill-tokens", "8", "--batches", "1")
OFFLINE = ("--num-iters", "4", "--input-len", "4", "--output-len", "3")
# The words, the timed run that ends a phase, and the table's first words.
KINDS = [
    ((*COMPARE, *SIZES), "prefill_seconds", "phase "),
    (("latency", *OFFLINE), "generate_seconds", "stub: 8 requests at once"),
    (("throughput", *OFFLINE), "generate_seconds", "stub: 64 requests, 16 at a time"),
]


def interrupt(patch: pytest.MonkeyPatch, name: str, num_calls: int) -> None:
    """Let the timed run `name` raise KeyboardInterrupt after so many calls."""
    calls = 0
    measure = getattr(stub_engine.StubTimed, name)

    def counted(*args: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > num_calls:
            raise KeyboardInterrupt
        seconds: float = measure(*args)
        return seconds

    patch.setattr(stub_engine.StubTimed, name, counted)


# Three models, each twice in a round, of which the first is not recorded.
@pytest.mark.parametrize(("num_calls", "rounds"), [(6 + 12 + 5, 2), (6 + 5, 0), (0, 0)])
@pytest.mark.parametrize(("words", "timed", "table"), KINDS)
def test_whole_rounds_are_shown_and_written(
    models: Models,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    timed: str,
    table: str,
    num_calls: int,
    rounds: int,
) -> None:
    loads = stub_engine.install(monkeypatch)
    interrupt(monkeypatch, timed, num_calls)
    kind, *sizes = words
    file, folders = tmp_path / "r.json", [model.folder for model in models]
    found = run(capsys, "bench", kind, *folders, *sizes, "--engine", "stub", "--json", file)
    status, out, err = found
    more = "" if rounds else "; no round was whole, so there is nothing to report"
    assert (status, err.splitlines()[-1]) == (130, f"sgate bench: interrupted{more}")
    assert [load.num_closed for load in loads] == [1] * 3
    if not rounds:
        assert out == "" and not file.exists()
        return
    first, second, *_ = out.splitlines()
    assert first == f"interrupted after {rounds} of 4 rounds" and second.startswith(table)
    assert "2.00x" in out
    record = json.loads(file.read_text())
    assert (record["interrupted"], record["rounds"]) == (True, rounds)
    if kind == "latency":
        (base, pruned) = record["models"].values()
        assert [len(figures["latencies"]) for figures in (base, pruned)] == [8, 4]


def test_the_plot_of_an_interrupted_comparison_counts_its_rounds(
    models: Models,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_engine.install(monkeypatch)
    interrupt(monkeypatch, "prefill_seconds", 6 + 6 * 3)
    folders, plot = [model.folder for model in models], tmp_path / "p.svg"
    kind, *sizes = (*COMPARE, *SIZES)
    status, _, _ = run(capsys, "bench", kind, *folders, *sizes, "--engine", "stub", "--plot", plot)
    assert status == 130 and ": 3 rounds" in plot.read_text()
