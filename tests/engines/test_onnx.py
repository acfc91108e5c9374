"""The ONNX engine's own: sizes chosen from graph and machine, buffers in place, broken graphs."""

import logging
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sgate_serve.engines import onnx
from sgate_serve.engines.onnx import OnnxEngine, load_runner
from sgate_serve.engines.scheduler import SlotOptions
from sgate_serve.environment import num_cpus
from sgate_serve.errors import EngineError
from tests.engines.uneven_model import SIZES, UnevenModel
from tests.small_llama import random_tokens

# Three layers with attention keep 1, 2 and 1 KV heads; width 12 is padded to 16.
BYTES_PER_TOKEN = 2 * (1 + 2 + 1) * 16 * 4


@pytest.fixture
def folder(uneven: UnevenModel) -> Path:
    return uneven.folders["onnx"]


def broken_copy(folder: Path, target: Path, metadata: dict[str, str]) -> Path:
    """Copy a graph with changed metadata; the weights stay where they are."""
    graph = ir.load(folder / "model.onnx")
    graph.metadata_props.update(metadata)
    target.mkdir()
    ir.save(graph, target / "model.onnx")
    (target / "model.onnx.data").hardlink_to(folder / "model.onnx.data")
    return target


def test_open_sizes_are_chosen_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = OnnxEngine.load(folder)
    mebibytes = 8 * 256 * BYTES_PER_TOKEN / 2**20
    assert (
        f"slots=8 max_model_len=256 threads={num_cpus()}, KV cache up to {mebibytes:.0f} MiB"
        in caplog.text
    )
    assert "prefill_chunk=128" in caplog.text
    assert (engine.runner.num_slots, engine.max_model_len) == (8, 256)


def test_memory_limits_the_model_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = 4 * 8 * BYTES_PER_TOKEN * 100
    sizes = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", lambda name: sizes[name])
    assert load_runner(folder, SlotOptions()).max_model_len == 100
    sizes["SC_PHYS_PAGES"] = 8 * BYTES_PER_TOKEN
    with pytest.raises(EngineError, match=r"KV cache needs 4096 bytes .* give fewer slots"):
        load_runner(folder, SlotOptions())


def test_model_length_beyond_the_graph_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="max_model_len 257 exceeds the graph's capacity of 256"):
        load_runner(folder, SlotOptions(max_model_len=257))


def test_cache_has_the_layers_own_widths(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    shapes = {name: buffer.shape for name, buffer in runner.cache.items()}
    assert shapes["past_key_values.1.key"] == (3, 1, 48, 16)
    assert shapes["past_key_values.3.value"] == (3, 2, 48, 16)
    assert len(shapes) == 6


def test_calls_write_their_rows_of_the_cache_only(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    runner.prefill(0, random_tokens(4).tolist())
    runner.prefill(2, random_tokens(6).tolist())
    before = runner.cache["past_key_values.1.key"].copy()
    runner.decode([2, 0], [5, 7])
    after = runner.cache["past_key_values.1.key"]
    written = (before != after).any(axis=(1, 3))
    assert [np.flatnonzero(row).tolist() for row in written] == [[4], [], [6]]


def test_decode_answers_in_the_order_of_the_slots(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    for slot in (0, 2):
        runner.prefill(slot, random_tokens(4 + slot, seed=slot).tolist())
    swapped = runner.decode([2, 0], [5, 7])
    for slot in (0, 2):
        runner.release(slot)
        runner.prefill(slot, random_tokens(4 + slot, seed=slot).tolist())
    np.testing.assert_array_equal(swapped[::-1], runner.decode([0, 2], [7, 5]))


def test_logits_of_a_row_are_the_same_in_any_batch(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    runner.prefill(1, random_tokens(9).tolist())
    alone = runner.decode([1], [3])
    runner.release(1)
    for slot in (0, 1, 2):
        runner.prefill(slot, random_tokens(9 if slot == 1 else 4).tolist())
    np.testing.assert_array_equal(runner.decode([0, 1, 2], [8, 3, 1])[1:2], alone)


def test_returned_logits_outlive_the_next_call(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    runner.prefill(0, [1, 2, 3])
    first = runner.decode([0], [4])
    kept = first.copy()
    runner.decode([0], [5])
    np.testing.assert_array_equal(first, kept)


def test_too_many_tokens_for_logits(folder: Path) -> None:
    with pytest.raises(EngineError, match="49 tokens do not fit this runner's max_model_len of 48"):
        load_runner(folder, SIZES).logits(random_tokens(49))


def test_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is missing; write it with `sgate convert"):
        OnnxEngine.load(tmp_path)


def test_graph_of_another_version(folder: Path, tmp_path: Path) -> None:
    newer = broken_copy(folder, tmp_path / "newer", {"sgate.onnx_version": "2"})
    message = r"graph format version '2', this release reads 1; convert the model again"
    with pytest.raises(EngineError, match=message):
        load_runner(newer, SIZES)
    with pytest.raises(EngineError, match=message):
        onnx.residuals(newer, random_tokens(3))


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut"
    target.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        data = (folder / name).read_bytes()
        (target / name).write_bytes(data if name == "model.onnx" else data[: len(data) // 2])
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime .* cannot load it"):
        load_runner(target, SIZES)
