"""The masked model in blocks of rows: where a block ends must not matter."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import write_gates, write_noise
from converters import masked
from converters.convert import open_masked
from sgate_serve.checkpoint.reader import Checkpoint
from tests.benchmarks.tiny import TINY

DOWN = "model.layers.1.mlp.down_proj.weight"
COLUMNS = np.array([0, 3, 4, 47])


@pytest.mark.parametrize("block_values", [1, 100, 2**18])
@pytest.mark.parametrize("rows", [None, np.array([1, 2, 30])])
def test_blocks_make_no_difference(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block_values: int,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]] | None,
) -> None:
    monkeypatch.setattr(masked, "BLOCK_VALUES", block_values)
    write_noise(tmp_path / "base", TINY, num_shards=1, seed=0)
    base = Checkpoint.open(tmp_path / "base")
    write_gates(tmp_path / "gates", base, closed=0.3, seed=0)
    found = open_masked(tmp_path / "base", tmp_path / "gates").read(DOWN, rows, COLUMNS)

    gates = open_masked(tmp_path / "base", tmp_path / "gates").masks[DOWN.removesuffix(".weight")]
    assert gates.columns is not None
    weight = base.read(DOWN)
    folded = (weight.astype(np.float32) * gates.columns).astype(weight.dtype)[:, COLUMNS]
    np.testing.assert_array_equal(found, folded if rows is None else folded[rows])
