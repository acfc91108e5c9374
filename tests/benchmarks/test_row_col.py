"""The row-col benchmark: masks remove their share, and index costs follow from measurements."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.masks import coupled_values, probe_values, row_col_values
from benchmarks.row_col import convert_masked, index_cost
from benchmarks.synthetic import write_noise
from sgate_serve.bench.ideal import decode_weights
from sgate_serve.checkpoint.reader import Checkpoint
from tests.benchmarks.tiny import TINY

WORKLOAD = {"rounds": 1, "decode_steps": 4, "context_tokens": 1, "prefill_tokens": 10}


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    write_noise(tmp_path / "dense", TINY, num_shards=1, seed=0)
    return Checkpoint.open(tmp_path / "dense")


def test_row_col_mask_closes_its_share_of_every_side(base: Checkpoint) -> None:
    values = row_col_values(base.spec, 0.25, seed=0)
    assert len(values) == 2 * len(base.spec.module_names())
    assert {float(np.mean(gates == 0)) for gates in values.values()} == {0.25}


def test_coupled_mask_removes_as_much_without_index_work(base: Checkpoint) -> None:
    values = row_col_values(base.spec, 0.25, seed=0)
    row_col = convert_masked(base, "row-col", values, 0)
    removed = row_col["figures"]["removed"]
    coupled = convert_masked(base, "coupled", coupled_values(base.spec, removed, 0), None)
    assert coupled["figures"]["removed"] == pytest.approx(removed, abs=0.03)
    assert coupled["figures"]["index_free"] == coupled["figures"]["removed"]
    assert coupled["index_operations"] == 0
    assert row_col["index_operations"] > 0


def test_nothing_is_lowered_at_a_prohibitive_price(base: Checkpoint) -> None:
    values = row_col_values(base.spec, 0.25, seed=0)
    dense = convert_masked(base, "dense-rest", values, 2**62)
    assert dense["index_operations"] == 0
    assert dense["figures"]["removed"] == dense["figures"]["index_free"]


def test_probe_causes_six_index_operations_per_layer(base: Checkpoint) -> None:
    probe = convert_masked(base, "probe", probe_values(base.spec, seed=0), 0)
    assert probe["index_operations"] == 6 * len(base.spec.layers)
    assert probe["figures"]["removed"] < 0.1


def test_index_cost_is_the_slowdown_divided_by_the_operations(base: Checkpoint) -> None:
    speedups = {"decode_batch_8": {"ratio": 0.5, "ci": [0.4, 0.8]}}
    # 320 tokens a second in 8 rows: a step takes 25 ms, and 5 operations add another 25.
    probe: dict[str, Any] = {
        "speedups": {"onnx": speedups},
        "tokens_per_second": {"decode_batch_8": {"dense": {"median": 320.0}}},
        "workload": WORKLOAD,
        "index_operations": 5,
    }
    cost = index_cost(probe, probe, base.spec)["decode_batch_8"]
    assert cost["microseconds"] == pytest.approx({"median": 5000, "low": 1250, "high": 7500})
    assert cost["weights"]["median"] == round(decode_weights(base.spec) / 5)
