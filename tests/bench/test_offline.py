"""Throughput and latency on small real models, and their arithmetic on given times."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.bench.offline import OfflineRun, offline_lines
from sgate_serve.bench.offline_workload import (
    LatencyWorkload,
    OfflineWorkload,
    ThroughputWorkload,
)
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.timed import TimedSlotEngine
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import load_slot_engine
from tests.bench import stub_engine
from tests.bench.test_compare import models
from tests.families.zoo import ZOO, build
from tests.small_llama import save

__all__ = ["models"]

THROUGHPUT = ThroughputWorkload(
    input_len=4, output_len=3, num_iters=2, threads=1, num_prompts=5, max_num_seqs=2
)
LATENCY = LatencyWorkload(input_len=4, output_len=3, num_iters=2, threads=1, batch_size=3)
Models = tuple[Checkpoint, Checkpoint]


def measure_offline(
    models: Sequence[Checkpoint], engine: str, workload: OfflineWorkload
) -> dict[str, Any]:
    run = OfflineRun(models, engine, workload)
    run.measure()
    return run.record()


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("workload", [THROUGHPUT, LATENCY])
def test_record_of_real_models(models: Models, engine: str, workload: OfflineWorkload) -> None:
    record = json.loads(json.dumps(measure_offline(models, engine, workload)))
    base, pruned = (str(model.folder) for model in models)
    assert list(record["models"]) == [base, pruned]
    assert "speedup" not in record["models"][base]
    assert record["models"][pruned]["speedup"]["median"] > 0
    assert record["floor"]["speedup"]["median"] > 0
    assert (record["interrupted"], record["rounds"]) == (False, 2)
    assert record["workload"]["seed"] == 0 and record["hardware"]["cpu_flags"]
    first, header, *rows = offline_lines(record)
    assert first.startswith(f"{engine}: ") and "4 + 3 tokens each, 4 runs" in first
    assert header.split()[-2:] == ["95%", "interval"]
    assert [row.split("   ")[0].strip() for row in rows] == [base, pruned, f"{base} again"]


def test_rates_and_latencies_are_those_of_the_times(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_engine.install(monkeypatch)
    base, pruned = models
    record = measure_offline(models, stub_engine.STUB, THROUGHPUT)
    dense = record["models"][str(base.folder)]
    # 5 requests of 4 + 3 tokens; the stub takes a second for each token.
    assert dense["elapsed_times"] == [35.0] * 8  # of both copies
    assert dense["requests_per_second"]["median"] == pytest.approx(5 / 35)
    assert dense["output_tokens_per_second"]["median"] == pytest.approx(15 / 35)
    assert dense["total_tokens_per_second"]["median"] == pytest.approx(1)
    assert record["models"][str(pruned.folder)]["speedup"]["median"] == pytest.approx(2)
    assert record["floor"]["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(timed.batch == 2 and timed.num_closed == 1 for timed in stub_engine.LOADED)

    stub_engine.LOADED.clear()
    (alone,) = measure_offline([base], stub_engine.STUB, LATENCY)["models"].values()
    assert len(stub_engine.LOADED) == 1
    assert alone["latencies"] == [21.0] * 4
    assert alone["avg_latency"] == 21.0
    assert alone["percentiles"] == {str(n): 21.0 for n in (10, 25, 50, 75, 90, 99)}


def test_a_slow_copy_of_the_first_model_counts_by_half(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = stub_engine.install(monkeypatch)
    seconds = {0: 1.0, 1: 0.5, 2: 3.0}
    monkeypatch.setattr(
        stub_engine.StubTimed,
        "_seconds_per_token",
        property(lambda timed: next(seconds[i] for i, each in enumerate(loads) if each is timed)),
    )
    record = measure_offline(models, stub_engine.STUB, LATENCY)
    base, pruned = (record["models"][str(model.folder)] for model in models)
    assert base["avg_latency"] == 42.0 and "speedup" not in base
    assert pruned["speedup"]["median"] == 4.0
    assert record["floor"]["speedup"]["median"] == pytest.approx(1 / 3)


def test_every_request_generates_all_its_tokens(models: Models) -> None:
    engine = load_slot_engine("onnx", models[1], SlotOptions(slots=2, max_model_len=8))
    tokens: dict[str, int] = {}
    step = engine.step

    def counted() -> Any:
        events = step()
        for event in events:
            tokens[event.request_id] = tokens.get(event.request_id, 0) + (event.token is not None)
        return events

    engine.step = counted  # type: ignore[method-assign]
    seconds = TimedSlotEngine(engine).generate_seconds(5, 4, 3, np.random.default_rng(0))
    assert seconds > 0
    assert tokens == {str(index): 3 for index in range(5)}
    engine.close()


def test_what_cannot_be_measured_is_refused(models: Models, tmp_path: Path) -> None:
    base, _ = models
    with pytest.raises(EngineError, match="a model is given twice"):
        measure_offline([base, base], "onnx", LATENCY)
    too_long = LatencyWorkload(input_len=base.spec.max_positions, output_len=1)
    with pytest.raises(EngineError, match="lower --input-len or --output-len"):
        measure_offline([base], "onnx", too_long)
    with pytest.raises(EngineError, match="--num-prompts 0: must be at least 1"):
        ThroughputWorkload(num_prompts=0)
    encoder = next(variant for variant in ZOO["bert"] if variant.task != "base")
    classifier = save(build(encoder, seed=0), tmp_path / "classifier")
    with pytest.raises(EngineError, match="does not generate text"):
        measure_offline([classifier], "onnx", LATENCY)
