"""The synthetic checkpoints have the sizes, values and headers that they should have."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import (
    LLAMA_70B,
    config_of_size,
    write_gates,
    write_headers_only,
    write_noise,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import Gates
from tests.benchmarks.tiny import TINY


def test_size_is_within_half_a_layer() -> None:
    wanted = 4 * 2**30
    spec = ModelSpec.from_config(config_of_size(wanted), "config")
    layer = 2 * spec.num_gateable / len(spec.layers)
    assert abs(2 * spec.num_parameters - wanted) < 0.51 * layer


def test_noise_is_finite_seeded_and_never_zero(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_noise(tmp_path / name, TINY, num_shards=5, seed=seed)
    a, b, c = (Checkpoint.open(tmp_path / name) for name in "abc")
    assert len({info.file for info in a.tensors.values()}) == 5
    for name in a.tensors:
        weight = a.read(name).astype(np.float32)
        assert weight.all()
        assert np.abs(weight).max() < 0.04
        np.testing.assert_array_equal(a.read(name), b.read(name))
        assert (a.read(name) != c.read(name)).any()


def test_an_impossible_number_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="30 tensors cannot fill 1000 shards; ask for fewer"):
        write_noise(tmp_path / "model", TINY, num_shards=1000, seed=0)
    assert not (tmp_path / "model").exists()


def test_headers_of_a_70b_take_no_disk_space(tmp_path: Path) -> None:
    write_headers_only(tmp_path / "model", LLAMA_70B)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert checkpoint.num_bytes == 2 * checkpoint.spec.num_parameters > 140 * 10**9
    assert sum(p.stat().st_blocks * 512 for p in (tmp_path / "model").iterdir()) < 2**20


def test_gates_close_the_share_asked_for(tmp_path: Path) -> None:
    write_noise(tmp_path / "model", TINY, num_shards=1, seed=0)
    base = Checkpoint.open(tmp_path / "model")
    write_gates(tmp_path / "gates", base, closed=0.5, seed=0)
    gates = Gates.read(tmp_path / "gates")
    gates.check(base)
    assert {np.mean(values == 0) for values in gates.values.values()} == {0.5}
