"""The encoder benchmark: masks remove their share, baselines compute the same as our engine."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.encoder_baselines import EagerTorch, TorchExport
from benchmarks.encoder_speed import ENGINE, EncoderSpeedOptions, prune
from benchmarks.masks import uneven_values
from benchmarks.speed_tables import encoder_rows
from benchmarks.synthetic import write_noise
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import PoolingOptions
from sgate_serve.loaders.serving import load_pooling_engine

SMALL = EncoderSpeedOptions(hidden=48, mlp=64, layers=4, heads=6, vocab_size=97)
TEXTS = list(np.random.default_rng(0).integers(0, 97, (2, 7)))


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    write_noise(tmp_path / "dense", SMALL.config, num_shards=1, seed=0)
    return Checkpoint.open(tmp_path / "dense")


def test_uneven_masks_remove_their_share(base: Checkpoint) -> None:
    figures = prune(base, "p30", 0.3, seed=0)
    assert figures["removed"] == pytest.approx(0.3, abs=0.01)
    assert figures["removed"] == figures["index_free"]
    values = uneven_values(base.spec, 0.3, seed=0)
    units = {int(gates.sum()) for key, gates in values.items() if key.endswith("mlp_units")}
    assert len(units) == len(base.spec.layers)


def test_torch_computes_the_same_as_our_engine(base: Checkpoint) -> None:
    ours = load_pooling_engine(ENGINE, base, PoolingOptions(threads=1))
    eager = EagerTorch(base, threads=1)
    np.testing.assert_allclose(eager.encode(TEXTS), list(ours.encode(TEXTS)), atol=1e-5)


def test_torch_export_computes_the_same_as_our_engine(base: Checkpoint, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("torch.onnx.export needs onnxscript")
    ours = load_pooling_engine(ENGINE, base, PoolingOptions(threads=1))
    exported = TorchExport(base, tmp_path / "exported", threads=1)
    np.testing.assert_allclose(exported.encode(TEXTS), list(ours.encode(TEXTS)), atol=1e-5)


def test_table_has_a_row_for_every_model() -> None:
    speedup = {"ratio": 1.5, "ideal": 2.0, "efficiency": 0.75}
    names = ("p20", "p30", "p40", "torch_export", "torch_eager")
    phases = ("batch_1", "batch_32")
    record: dict[str, Any] = {
        "figures": {name: {"removed": 0.2} for name in names[:3]},
        "speedups": {name: dict.fromkeys(phases, speedup) for name in names},
        "floor": {phase: {"median": 0.8} for phase in phases},
        "base": ["dense", "dense_again"],
    }
    rows = list(encoder_rows(record))
    assert "removed | 1 at once | 32 at once | ideal" in rows[0]
    assert rows[3] == "| 30% | 20.0% | 1.50× (0.75) | 1.50× (0.75) | 2.00× |"
    assert rows[-1] == "| dense / dense | none | 0.80× | 0.80× | 1.00× |"
    assert len(rows) == 2 + len(names) + 1
    # Records without a base have speedups over the first copy: 0.8 to 1, so 0.8 to 0.9 on average.
    del record["base"]
    old = list(encoder_rows(record))[3]
    assert old == "| 30% | 20.0% | 1.69× (0.84) | 1.69× (0.84) | 2.00× |"
