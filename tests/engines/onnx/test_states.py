"""States of recurrent layers on the embedded engine: whose they are, and when they begin anew."""

import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from converters.convert import ConvertOptions, convert, open_masked
from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.engine_options import CPU, OnnxOptions, SlotOptions
from sgate_serve.engines.onnx import engine as onnx
from sgate_serve.engines.onnx import runner as onnx_runner
from sgate_serve.engines.onnx import shared_calls
from sgate_serve.engines.onnx.engine import OnnxEngine, load_runner
from sgate_serve.engines.onnx.shared_calls import calls_of
from sgate_serve.engines.runner import TokenChunk, all_logits
from sgate_serve.errors import EngineError
from sgate_serve.loaders.draft import check_can_draft
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.precision import PRECISIONS
from tests.converters.test_convert import random_gates, write_gates
from tests.engines.drive import Answer, greedy, prompt, run
from tests.engines.uneven_model import RECURRENT, SIZES, UnevenModel, write_family
from tests.families.zoo import ZOO, build
from tests.small_llama import random_tokens

# Layers 0 and 2 of 4 values for each of two keys, between them one with attention.
VARIANT = ZOO[RECURRENT][0]
HEADS, CHANNELS = 8 * 10 * 8, 2 * 2 * 10 + 8 * 8
BYTES_PER_SLOT = 2 * (HEADS + 3 * CHANNELS) * 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_family(RECURRENT, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    build(VARIANT, seed=0).save_pretrained(root / "base")
    write_onnx(Checkpoint.open(root / "base"), root / "onnx")
    return root / "onnx"


def without(layers: tuple[int, ...], root: Path) -> UnevenModel:
    """Convert a model whose gates close random heads, and all of some layers."""
    build(VARIANT, seed=0).save_pretrained(root / "base")
    base = Checkpoint.open(root / "base")
    closed = {
        f"model.layers.{index}.kv_groups": np.zeros(base.spec.layers[index].num_kv_heads)
        for index in layers
    }
    write_gates(base, root / "gates", **random_gates(base, seed=0, closed=0.3) | closed)
    convert(ConvertOptions(str(base.folder), root / "out", root / "gates", to=("hf", "onnx")))
    oracle = TorchModel.masked_dense(open_masked(base.folder, root / "gates"))
    return UnevenModel({"onnx": root / "out" / "onnx"}, oracle.logits)


@pytest.mark.parametrize("worth", [0, 128])
def test_rows_of_any_lengths_and_idle_ones_keep_their_states(
    worth: int, served: UnevenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_calls, "WORTH_A_CALL", worth)
    runner = load_runner(served.folders["onnx"], SlotOptions(slots=5, max_model_len=48, threads=1))
    rng, texts = np.random.default_rng(0), [random_tokens(48, seed=slot) for slot in range(5)]
    found: list[list[NDArray[np.float32]]] = [[] for _ in texts]
    for _ in range(40):
        chunks = []
        for slot in rng.permutation(5)[: rng.integers(1, 5)].tolist():
            start, count = len(found[slot]), int(rng.choice([1, 1, 2, 3, 9]))
            tokens = texts[slot][start : start + count].tolist()
            chunks += [TokenChunk(slot, tokens, len(tokens))] if tokens else []
        computed = iter(runner.forward(chunks) if chunks else ())
        for chunk in chunks:
            found[chunk.slot] += [next(computed) for _ in chunk.tokens]
        if rng.random() < 0.15:
            slot = int(rng.integers(5))
            runner.release(slot)
            texts[slot], found[slot] = random_tokens(48, seed=int(rng.integers(99))), []
    assert sum(map(len, found)) > 80
    for text, logits in zip(texts, found, strict=True):
        if logits:
            expected = served.logits(text)[: len(logits)]
            np.testing.assert_allclose(np.array(logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_token_is_computed_alike_in_any_chunk(precision: str, tmp_path: Path) -> None:
    """Without attention, which sums in another order, all of a prompt's logits are the same."""
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    write_gates(base, tmp_path / "gates", **{"model.layers.1.kv_groups": np.zeros(2)})
    convert(ConvertOptions(str(base.folder), tmp_path / "out", tmp_path / "gates"))
    write_onnx(Checkpoint.open(tmp_path / "out"), tmp_path / "onnx", PRECISIONS[precision])
    options = OnnxOptions(slots=3, max_model_len=48, threads=1, batch_invariant=True)
    runner, tokens = load_runner(tmp_path / "onnx", options), random_tokens(20)
    whole = all_logits(runner, tokens)
    for size in (1, 3, 8):
        np.testing.assert_array_equal(all_logits(runner, tokens, size), whole)


def test_single_tokens_get_a_call_of_their_own_beside_long_chunks() -> None:
    single = [TokenChunk(slot, (1,)) for slot in (0, 2)]
    for length, calls in ((1, 1), (60, 1), (70, 2), (200, 2)):
        chunks = [single[0], TokenChunk(1, (1,) * length), single[1]]
        # Beside 70 tokens, each of the other two rows has 69 places of padding.
        assert calls_of(chunks) == ([[0, 1, 2]] if calls == 1 else [[1], [0, 2]])


def test_running_short_of_cache_changes_no_token(served: UnevenModel) -> None:
    engine = OnnxEngine.load(served.folders["onnx"], SIZES)
    engine.runner.cache_tokens = 60
    requests = [Request(f"r{seed}", prompt(12, seed), greedy(25)) for seed in range(4)]
    answers = run(engine, requests)
    assert engine.stats().preemptions
    for request in requests:
        expected = served.greedy(request.prompt, 25)
        assert answers[request.request_id] == Answer(expected, "length")
    assert engine.stats().prefix_hits == 0


@pytest.mark.parametrize("num_steps", [1, 3])
def test_nothing_of_an_aborted_request_is_left(num_steps: int, served: UnevenModel) -> None:
    engine = OnnxEngine.load(served.folders["onnx"], SIZES)
    # Its prompt takes three steps.
    engine.add(Request("aborted", prompt(12, 3), greedy(9)))
    for _ in range(num_steps):
        engine.step()
    engine.abort("aborted")
    answers = run(engine, [Request(f"{seed}", prompt(7, seed), greedy(6)) for seed in range(4)])
    for seed in range(4):
        assert answers[f"{seed}"].tokens == served.greedy(prompt(7, seed), 6)


@pytest.mark.parametrize(("layers", "has_states"), [((0,), True), ((0, 2), False), ((1,), True)])
def test_prefixes_are_shared_where_no_layer_is_left_that_carries_a_state(
    layers: tuple[int, ...], has_states: bool, tmp_path: Path
) -> None:
    model = without(layers, tmp_path)
    engine, start = OnnxEngine.load(model.folders["onnx"], SIZES), prompt(20)
    for name in ("first", "again"):
        expected = Answer(model.greedy(start, 4), "length")
        assert run(engine, [Request(name, start, greedy(4))]) == {name: expected}
    assert engine.runner.shares_prefixes is not has_states
    assert bool(engine.stats().prefix_hits) is not has_states


def test_states_count_in_the_memory(
    dense: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx, "memory_bytes", lambda: 4 * (8 * BYTES_PER_SLOT + 300 * 256))
    with caplog.at_level(logging.INFO):
        runner = load_runner(dense, SlotOptions(slots=8))
    assert (runner.cache_tokens, runner.shares_prefixes) == (300, False)
    assert f"states of {BYTES_PER_SLOT} bytes a slot, 0 MiB in all; no prefix" in caplog.text
    message = rf"needs 256 bytes beside {400 * BYTES_PER_SLOT} of .* 400 slots, .*; lower slots or "
    with pytest.raises(EngineError, match=message):
        load_runner(dense, SlotOptions(slots=400))


def test_nothing_drafts_for_a_model_that_cannot_take_tokens_back(served: UnevenModel) -> None:
    engine = OnnxEngine.load(served.folders["onnx"], SIZES)
    with pytest.raises(EngineError, match="cannot take back a token that was drafted wrongly"):
        check_can_draft(engine, Checkpoint.open(served.folders["model"]))


def test_states_are_in_host_memory(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if there were such a device.
    monkeypatch.setitem(onnx_runner.PROVIDERS, "cuda", onnx_runner.PROVIDERS[CPU])
    with pytest.raises(EngineError, match=r"recurrent layers, .*; give --device cpu, found cuda"):
        load_runner(dense, OnnxOptions(device="cuda"))


def test_a_state_of_an_unknown_size_is_refused(dense: Path, tmp_path: Path) -> None:
    graph = ir.load(dense / "model.onnx")
    name = "past_state.0.recent"
    next(value for value in graph.graph.inputs if value.name == name).shape = ir.Shape(
        ["b", "c", 104]
    )
    ir.save(graph, tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").hardlink_to(dense / "model.onnx.data")
    with pytest.raises(EngineError, match=r"0\.recent is a .* which this release does not read"):
        load_runner(tmp_path)
