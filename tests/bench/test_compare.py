"""The comparison on small real models, and its arithmetic on given times."""

import json
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.compare import compare
from sgate_serve.bench.comparison import (
    DENSE,
    DENSE_AGAIN,
    PRUNED,
    comparison_lines,
    summarise,
)
from sgate_serve.bench.ideal import prefill_flops
from sgate_serve.bench.rounds import measure_rounds, order_of
from sgate_serve.bench.workload import PoolingWorkload, Workload, phases, tokens_per_run
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedSizes
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.reports.plots import plot_comparison
from tests.bench import stub_engine
from tests.converters.test_convert import random_gates, write_gates
from tests.families.zoo import ZOO, build
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
    assert (record["beside"], record["beside_folders"]) == ({}, {})
    assert record["order"] == [DENSE, PRUNED, DENSE_AGAIN, DENSE_AGAIN, PRUNED, DENSE]
    assert record["base"] == [DENSE, DENSE_AGAIN]
    assert (record["interrupted"], record["rounds"]) == (False, WORKLOAD.rounds)
    assert record["workload"]["seed"] == 0 and record["hardware"]["cpus"] >= 1
    assert [line.split()[0] for line in comparison_lines(record)][:4] == [
        "phase",
        "decode_batch_1",
        "decode_batch_8",
        "prefill",
    ]
    plot_comparison(result, tmp_path / "plot.svg")
    assert "decode, batch 8" in (tmp_path / "plot.svg").read_text()


def test_model_beside_is_measured_in_the_same_rounds(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    result = compare(*models, "onnx", WORKLOAD, {"masked": models[0]})
    record = json.loads(json.dumps(result.to_json()))
    half = [DENSE, PRUNED, "masked", DENSE_AGAIN]
    assert record["order"] == half + half[::-1]
    assert record["beside_folders"] == {"masked": str(models[0].folder)}
    for phase, pruned in record["speedups"]["onnx"].items():
        masked = record["beside"]["masked"][phase]
        assert set(masked) == set(pruned)
        assert masked["ideal"] == 1.0 < pruned["ideal"]
        assert set(record["tokens_per_second"][phase]) == {DENSE, PRUNED, "masked"}
    plot_comparison(result, tmp_path / "plot.svg")
    assert "masked" in (tmp_path / "plot.svg").read_text()


def test_precision_after_the_dashes_applies_to_every_model(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    plain = compare(*models, "onnx", WORKLOAD).to_json()
    assert plain["precisions"] == {DENSE: "fp32", PRUNED: "fp32"}
    convert(ConvertOptions(str(models[1].folder), tmp_path / "int8", precision="int8"))
    workload = replace(WORKLOAD, engine_arguments=("--precision", "int4"))
    record = compare(*models, "onnx", workload).to_json()
    assert set(record["precisions"].values()) == {"int4"}
    ideals = [found["speedups"]["onnx"]["decode_batch_1"]["ideal"] for found in (plain, record)]
    # The head has 8 bits and is not pruned.
    assert 1 < ideals[1] < ideals[0]
    int8 = Checkpoint.open(tmp_path / "int8")
    beside = compare(*models, "onnx", WORKLOAD, {"int8": int8}).to_json()
    assert beside["precisions"] == {DENSE: "fp32", PRUNED: "fp32", "int8": "int8"}
    assert beside["beside"]["int8"]["decode_batch_1"]["ideal"] > 3 * ideals[0]


def test_each_model_beside_has_its_own_speedup(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = stub_engine.install(monkeypatch)
    other = save(dense_llama(), tmp_path / "other")
    workload = replace(WORKLOAD, batches=(2, 16), engine_arguments=("--any", "7"))
    record = compare(*models, "stub", workload, {"masked": models[0], "other": other}).to_json()
    assert list(record["speedups"]["stub"]) == ["decode_batch_2", "decode_batch_16", "prefill"]
    measured = {"pruned": record["speedups"]["stub"]} | record["beside"]
    for name, ratio in {"pruned": 2.0, "masked": 1.0, "other": 4.0}.items():
        assert {speedup["ratio"] for speedup in measured[name].values()} == {ratio}
    assert {floor["ratio"] for floor in record["floor"].values()} == {1.0}
    assert [load.folder.name for load in loads] == ["base", "out", "base", "other", "base"]
    assert [load.num_closed for load in loads] == [1] * 5
    assert {(load.batch, load.max_model_len, load.threads) for load in loads} == {(16, 8, 1)}
    assert {load.arguments for load in loads} == {("--any", "7")}
    # Three rounds, the first of which warms up, each forwards and backwards.
    a_round = [(2, 4, 2), (2, 4, 2), (16, 4, 2), (16, 4, 2), (8,), (8,)]
    assert {tuple(load.calls) for load in loads} == {tuple(3 * a_round)}
    assert record["workload"]["engine_arguments"] == ("--any", "7")
    lines = list(comparison_lines(record))
    assert [line for line in lines if line.endswith(":")] == ["pruned:", "masked:", "other:"]
    assert lines[-2].split()[:2] == ["prefill", "4.00x"]
    assert lines[-1].startswith(
        "masked: this run shows no difference from dense in decode_batch_2 (floor 1.00 to 1.00), "
    )


@pytest.mark.parametrize(
    ("ratio", "interval", "floor", "is_shown"),
    [
        (1.4, (1.3, 1.5), (0.9, 1.1), True),
        (0.7, (0.6, 0.8), (0.9, 1.1), True),
        # The floor alone is as far from 1, or the interval includes no change.
        (1.2, (1.1, 1.3), (0.8, 1.25), False),
        (1.2, (0.95, 1.5), (0.99, 1.01), False),
    ],
)
def test_an_effect_that_the_noise_covers_is_called_so(
    ratio: float, interval: tuple[float, float], floor: tuple[float, float], is_shown: bool
) -> None:
    speedup = {"ratio": ratio, "ci": interval, "ideal": 1.5, "efficiency": ratio / 1.5}
    record = {
        "engine": "onnx",
        "speedups": {"onnx": {"prefill": speedup}},
        "floor": {"prefill": {"ratio": 1.0, "ci": floor}},
    }
    says = [line for line in comparison_lines(record) if "shows no difference" in line]
    assert len(says) == (not is_shown)


@pytest.mark.parametrize(
    ("arguments", "error", "num_loaded"),
    [
        (("--fail", "3"), pytest.raises(MemoryError, match="no room"), 2),
        (
            ("--shorter", "1"),
            pytest.raises(EngineError, match=r"base: engine stub was loaded with 7 positions, the"),
            1,
        ),
    ],
)
def test_models_are_closed_when_one_cannot_be_loaded(
    models: tuple[Checkpoint, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    error: AbstractContextManager[object],
    num_loaded: int,
) -> None:
    loads = stub_engine.install(monkeypatch)
    with error:
        compare(*models, "stub", replace(WORKLOAD, engine_arguments=arguments))
    assert [load.num_closed for load in loads] == [1] * num_loaded


def test_models_are_closed_when_measuring_fails(
    models: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = stub_engine.install(monkeypatch)
    # The prefill comes last, so all models have run by then.
    monkeypatch.delattr(stub_engine.StubTimed, "prefill_seconds")
    with pytest.raises(AttributeError, match="prefill_seconds"):
        compare(*models, "stub", WORKLOAD)
    assert [load.num_closed for load in loads] == [1, 1, 1]


def test_name_of_a_model_beside_must_be_its_own(models: tuple[Checkpoint, Checkpoint]) -> None:
    with pytest.raises(
        EngineError, match="--beside dense_again: the comparison already has a model"
    ):
        compare(*models, "onnx", WORKLOAD, {DENSE_AGAIN: models[0]})


def test_plot_of_another_file_type_is_refused(
    models: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(SgateError, match=r"plot.txt: give a file name that ends in .png"):
        plot_comparison(compare(*models, "onnx", WORKLOAD), tmp_path / "plot.txt")


def test_every_round_is_balanced_and_the_first_is_not_recorded() -> None:
    calls: list[str] = []
    names = (DENSE, PRUNED, "beside", DENSE_AGAIN)
    order = order_of(names)
    assert order == (*names, DENSE_AGAIN, "beside", PRUNED, DENSE)

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    def measure(timed: Named) -> float:
        calls.append(timed.name)
        return float(len(calls))

    timed = {name: Named(name) for name in names}
    times = measure_rounds({"phase": measure}, timed, rounds=2)
    assert calls == [*order, *order, *order]
    assert {name: len(values) for name, values in times["phase"].items()} == dict.fromkeys(names, 4)
    positions = defaultdict(list)
    for position, name in enumerate(order):
        positions[name].append(position)
    assert {sum(values) for values in positions.values()} == {7}
    # Times that grow by the same amount with every call show no speedup at all.
    ideals = {PRUNED: 1.0, "beside": 1.0}
    result = summarise(times["phase"], ideals, num_tokens=1, seed=0)
    for speedup in result.speedups.values():
        assert speedup.measured.median == pytest.approx(1.0)
    assert result.floor.median == pytest.approx(1.0)


def test_speedup_is_the_median_of_paired_ratios() -> None:
    seconds = {
        DENSE: [2.0, 2.0, 6.0, 6.0, 3.0, 3.0],
        PRUNED: [1.0, 1.0, 2.0, 2.0, 2.0, 2.0],
        DENSE_AGAIN: [2.0, 2.0, 5.0, 5.0, 3.0, 3.0],
    }
    result = summarise(seconds, {PRUNED: 4.0}, num_tokens=6, seed=0)
    speedup = result.speedups[PRUNED]
    assert (speedup.measured.median, speedup.efficiency) == (2.0, 0.5)
    assert result.floor.median == 1.0
    assert result.tokens_per_second[DENSE].median == 2.0


def test_a_slow_copy_of_the_dense_model_counts_by_half() -> None:
    seconds = {DENSE: [6.0, 6.0], PRUNED: [1.0, 1.0], DENSE_AGAIN: [2.0, 2.0]}
    result = summarise(seconds, {PRUNED: 4.0}, num_tokens=12, seed=0)
    assert result.speedups[PRUNED].measured.median == 4.0
    assert result.floor.median == 3.0
    assert set(result.tokens_per_second) == {DENSE, PRUNED}
    # 12 tokens in 4 s, the mean of both copies.
    assert result.tokens_per_second[DENSE].median == 3.0


def test_phases_and_their_tokens() -> None:
    assert [tokens_per_run(WORKLOAD, name) for name in phases(WORKLOAD)] == [2, 16, 8]
    workload = replace(WORKLOAD, batches=(4, 32))
    assert list(phases(workload)) == ["decode_batch_4", "decode_batch_32", "prefill"]
    assert [tokens_per_run(workload, name) for name in phases(workload)] == [8, 64, 8]
    assert workload.sizes == TimedSizes(batch=32, model_len=8, threads=1)


@pytest.mark.parametrize(("batches", "found"), [((), "''"), ((0, 8), "'0,8'"), ((4, 4), "'4,4'")])
def test_batches_that_make_no_phases_are_refused(batches: tuple[int, ...], found: str) -> None:
    with pytest.raises(EngineError, match=f"--batches {found}: give different numbers, each at"):
        Workload(batches=batches)


def test_workload_longer_than_the_model_is_refused(
    models: tuple[Checkpoint, Checkpoint],
) -> None:
    with pytest.raises(EngineError, match="holds 256 positions, the workload needs 300"):
        compare(*models, "onnx", Workload(prefill_tokens=300))
    with pytest.raises(EngineError, match="--decode-steps 0: must be at least 1"):
        Workload(decode_steps=0)


@pytest.fixture
def classifiers(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    base = Checkpoint.open(tmp_path / "bert")
    gates = write_gates(base, tmp_path / "bert-gates", **random_gates(base, 6, 0.4))
    convert(ConvertOptions(str(base.folder), tmp_path / "bert-out", gates))
    return base, Checkpoint.open(tmp_path / "bert-out")


def test_record_of_classifiers(classifiers: tuple[Checkpoint, Checkpoint]) -> None:
    workload = PoolingWorkload(rounds=2, prefill_tokens=8, batches=(1, 3), threads=1)
    record = json.loads(json.dumps(compare(*classifiers, "onnx", workload).to_json()))
    dense, pruned = (prefill_flops(model.spec, 8) for model in classifiers)
    assert list(record["speedups"]["onnx"]) == ["batch_1", "batch_3"]
    for speedup in record["speedups"]["onnx"].values():
        assert speedup["ideal"] == pytest.approx(dense / pruned)
    assert record["workload"]["prefill_tokens"] == 8
    assert [tokens_per_run(workload, phase) for phase in phases(workload)] == [8, 24]
    rows = [line.split()[0] for line in comparison_lines(record)]
    assert rows[:3] == ["phase", "batch_1", "batch_3"]


def test_models_of_another_kind_than_the_workload_are_refused(
    models: tuple[Checkpoint, Checkpoint], classifiers: tuple[Checkpoint, Checkpoint]
) -> None:
    generates = "is a LlamaForCausalLM, which generates text; give a classifier or a base model"
    with pytest.raises(EngineError, match=generates):
        compare(classifiers[0], models[1], "onnx", PoolingWorkload(prefill_tokens=8))
    reads = "is a BertForSequenceClassification, which does not generate text; give a causal lang"
    with pytest.raises(EngineError, match=reads):
        compare(models[0], classifiers[1], "onnx", WORKLOAD)
    with pytest.raises(EngineError, match=r"holds 64 positions, .* needs 128; lower --prefill-t"):
        compare(*classifiers, "onnx", PoolingWorkload())
    with pytest.raises(EngineError, match="--prefill-tokens 0: must be at least 1"):
        PoolingWorkload(prefill_tokens=0)
    with pytest.raises(EngineError, match="--batches '': give different numbers, each at least 1"):
        PoolingWorkload(batches=())


def test_engine_without_pooling_models_is_rejected(
    classifiers: tuple[Checkpoint, Checkpoint],
) -> None:
    message = "engine torch does not run classifiers or embedding models; use --engine onnx"
    with pytest.raises(EngineError, match=message):
        compare(*classifiers, "torch", PoolingWorkload(prefill_tokens=8))
