"""The comparison on real small models, and its arithmetic on times made by hand."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.compare import (
    DENSE,
    DENSE_AGAIN,
    ORDER,
    PRUNED,
    compare,
    comparison_lines,
    measure_rounds,
    summarise,
)
from sgate_serve.bench.workload import Workload, phases, tokens_per_run
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.engines.scheduler import Runner
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.plots import plot_comparison
from tests.converters.test_convert import random_gates, write_gates
from tests.small_llama import dense_llama, save

WORKLOAD = Workload(rounds=2, decode_steps=2, context_tokens=4, prefill_tokens=8, threads=1)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, 6, 0.4))
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    return base, Checkpoint.open(tmp_path / "out")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_record_of_a_real_comparison(
    models: tuple[Checkpoint, Checkpoint], engine: str, tmp_path: Path
) -> None:
    result = compare(*models, engine, WORKLOAD)
    record = json.loads(json.dumps(result.to_json()))
    assert list(record["speedups"][engine]) == ["decode_batch_1", "decode_batch_8", "prefill"]
    for phase, speedup in record["speedups"][engine].items():
        assert set(speedup) == {"ratio", "ci", "ideal", "efficiency"}
        assert speedup["ci"][0] <= speedup["ratio"] <= speedup["ci"][1]
        assert speedup["ideal"] > 1
        assert speedup["efficiency"] == pytest.approx(speedup["ratio"] / speedup["ideal"])
        assert record["floor"][phase]["ratio"] > 0
    assert record["workload"]["seed"] == 0 and record["hardware"]["cpus"] >= 1
    assert len(list(comparison_lines(record))) == 4
    plot_comparison(result, tmp_path / "plot.svg")
    assert "decode_batch_8" in (tmp_path / "plot.svg").read_text()


def test_plot_of_another_file_type_is_refused(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(SgateError, match=r"plot.txt: give a file name that ends in .png"):
        plot_comparison(compare(*models, "onnx", WORKLOAD), tmp_path / "plot.txt")


def test_every_round_is_balanced_and_the_first_is_not_recorded() -> None:
    calls: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    def measure(runner: Runner) -> float:
        calls.append(runner.name)  # type: ignore[attr-defined]
        return float(len(calls))

    runners: dict[str, Runner] = {n: Named(n) for n in set(ORDER)}  # type: ignore[misc]
    times = measure_rounds({"phase": measure}, runners, rounds=2)
    assert calls == [*ORDER, *ORDER, *ORDER]
    assert {name: len(values) for name, values in times["phase"].items()} == dict.fromkeys(ORDER, 4)
    positions = defaultdict(list)
    for position, name in enumerate(ORDER):
        positions[name].append(position)
    assert {sum(values) for values in positions.values()} == {5}
    # Times that grow by the same amount with every call show no speedup at all.
    result = summarise(times["phase"], ideal=1.0, num_tokens=1, seed=0)
    assert result.speedup.median == pytest.approx(1.0)
    assert result.floor.median == pytest.approx(1.0)


def test_speedup_is_the_median_of_paired_ratios() -> None:
    seconds = {
        DENSE: [2.0, 2.0, 6.0, 6.0, 3.0, 3.0],
        PRUNED: [1.0, 1.0, 2.0, 2.0, 2.0, 2.0],
        DENSE_AGAIN: [2.0, 2.0, 5.0, 5.0, 3.0, 3.0],
    }
    result = summarise(seconds, ideal=4.0, num_tokens=6, seed=0)
    assert (result.speedup.median, result.efficiency) == (2.0, 0.5)
    assert result.floor.median == 1.0
    assert result.tokens_per_second[DENSE].median == 2.0


def test_phases_and_their_tokens() -> None:
    assert [tokens_per_run(WORKLOAD, name) for name in phases(WORKLOAD)] == [2, 16, 8]


def test_workload_longer_than_the_model_is_refused(
    models: tuple[Checkpoint, Checkpoint],
) -> None:
    with pytest.raises(EngineError, match="holds 256 positions, the workload needs 300"):
        compare(*models, "onnx", Workload(prefill_tokens=300))
    with pytest.raises(EngineError, match="--decode-steps 0: must be at least 1"):
        Workload(decode_steps=0)
