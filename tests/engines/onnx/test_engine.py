"""The ONNX engine: sizes chosen from graph and machine, buffers in place, broken graphs."""

import logging
import mmap
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from converters.to_onnx import write_onnx
from sgate_serve.engines.contract import Request, SamplingParams, TokenEvent
from sgate_serve.engines.engine_options import OnnxOptions, SlotOptions
from sgate_serve.engines.onnx import engine as onnx
from sgate_serve.engines.onnx.engine import GraphInfo, OnnxEngine, choose_sizes, load_runner
from sgate_serve.engines.onnx.graph_metadata import cannot_run
from sgate_serve.engines.onnx.runner import CALL_INPUTS, check_interface
from sgate_serve.engines.runner import TokenChunk, all_logits
from sgate_serve.environment import num_cpus
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import load_slot_engine
from sgate_serve.onnx_format.precision import PRECISIONS
from tests.engines.drive import decode, prefill, prompt
from tests.engines.uneven_model import SIZES, UnevenModel
from tests.small_llama import dense_llama, random_tokens, save

# Three layers with attention keep 1, 2 and 1 KV heads; width 12 is padded to 16.
BYTES_PER_TOKEN = 2 * (1 + 2 + 1) * 16 * 4


@pytest.fixture
def folder(uneven: UnevenModel) -> Path:
    return uneven.folders["onnx"]


def broken_copy(
    folder: Path, target: Path, metadata: Mapping[str, str | None], **axis: int
) -> Path:
    """Copy a graph with other metadata or another Gather; the weights stay where they are."""
    graph = ir.load(folder / "model.onnx")
    for key, value in metadata.items():
        graph.metadata_props.pop(key, None)
        graph.metadata_props.update({} if value is None else {key: value})
    node = next(node for node in graph.graph if node.op_type == "Gather")
    for name, place in axis.items():
        node.attributes.add(ir.convenience.convert_attribute(name, place))
    target.mkdir()
    ir.save(graph, target / "model.onnx")
    (target / "model.onnx.data").hardlink_to(folder / "model.onnx.data")
    return target


def test_open_sizes_are_chosen_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = OnnxEngine.load(folder)
    slots = 4 * num_cpus()
    mebibytes = slots * 256 * BYTES_PER_TOKEN / 2**20
    assert (
        f"slots={slots} max_model_len=256 threads={num_cpus()} device=cpu, KV cache of "
        f"{slots * 256} tokens in up to {mebibytes:.0f} MiB, {BYTES_PER_TOKEN} bytes a token in "
        "fp32" in caplog.text
    )
    assert "prefill_chunk=128" in caplog.text
    assert (engine.runner.num_slots, engine.max_model_len) == (slots, 256)


def test_slots_share_the_memory_that_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = 4 * BYTES_PER_TOKEN * 300
    monkeypatch.setattr(onnx, "memory_bytes", lambda: memory)
    runner = load_runner(folder, SlotOptions(slots=8))
    assert (runner.max_model_len, runner.cache_tokens) == (256, 300)
    memory = 4 * BYTES_PER_TOKEN * 100
    runner = load_runner(folder, SlotOptions(slots=8))
    assert (runner.max_model_len, runner.cache_tokens) == (100, 100)
    memory = 4 * BYTES_PER_TOKEN - 1
    with pytest.raises(EngineError, match=r"of 1 tokens needs 512 bytes, more than 25% of this"):
        load_runner(folder, SlotOptions())


def test_memory_that_is_given_is_taken(folder: Path) -> None:
    runner = load_runner(folder, OnnxOptions(slots=20, kv_cache_mib=2))
    assert runner.cache_tokens == 2**21 // BYTES_PER_TOKEN
    with pytest.raises(EngineError, match=r"more than 1 MiB; lower .* or raise --kv-cache-mib"):
        choose_sizes(
            OnnxOptions(max_model_len=4096, kv_cache_mib=1),
            GraphInfo("generate", 4096, 5),
            BYTES_PER_TOKEN,
        )


def test_a_released_slot_gives_its_memory_back(tmp_path: Path, folder: Path) -> None:
    runner = load_runner(folder, SlotOptions(slots=3, max_model_len=256, threads=1))
    for slot in range(3):
        prefill(runner, slot, random_tokens(256, seed=slot).tolist())
    buffer = runner.cache.array("past_key_values.3.key")
    neighbours = buffer[[0, 2]].copy()
    runner.release(1)
    # Pages entirely inside the slot read as zeros again; neighbouring slots keep their content.
    assert not buffer[1].any()
    np.testing.assert_array_equal(buffer[[0, 2]], neighbours)


def test_a_chunk_beside_a_full_row(folder: Path) -> None:
    """The kernel needs room for the longest row's new tokens after every row, even an idle one."""
    runner = load_runner(folder, SIZES)
    full, other = random_tokens(48).tolist(), random_tokens(5, seed=1).tolist()
    last = prefill(runner, 0, full)
    alone = prefill(runner, 1, other)
    runner.release(0)
    runner.release(1)
    prefill(runner, 0, full[:-1])
    prefill(runner, 2, full)
    both = runner.forward([TokenChunk(0, full[-1:]), TokenChunk(1, other)])
    np.testing.assert_allclose(both, [last, alone], atol=1e-4)
    assert runner.lengths.tolist() == [48, 5, 48]


@pytest.mark.parametrize(("slots", "multiple"), [(1, 1), (2, 2)])
def test_only_slots_with_neighbours_fill_calls_up(slots: int, multiple: int) -> None:
    info = GraphInfo("generate", 64, 5, row_multiple=2)
    sizes = choose_sizes(OnnxOptions(slots=slots, max_model_len=16), info, token_bytes=8)
    assert sizes.row_multiple == multiple


def test_a_chunk_over_what_graphs_allow(folder: Path) -> None:
    with pytest.raises(EngineError, match="prefill_chunk 1025 is too large; give at most 1024"):
        OnnxEngine.load(folder, SlotOptions(prefill_chunk=1025))


def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no CUDAExecutionProvider; for device cuda run: .*pip install .*\[gpu\]"
    ):
        load_runner(folder, OnnxOptions(device="cuda"))
    with pytest.raises(EngineError, match="engine option device is 'tpu'; give cpu or cuda"):
        OnnxOptions(device="tpu")


def test_model_length_beyond_the_graph_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="max_model_len 257 exceeds the graph's capacity of 256"):
        load_runner(folder, SlotOptions(max_model_len=257))


def test_cache_has_the_layers_own_widths(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    # A chunk's length after the 48 positions of a slot: see MAX_CHUNK in onnx_format/names.py.
    assert runner.cache.array("past_key_values.1.key").shape == (3, 1, 53, 16)
    assert runner.cache.array("past_key_values.3.value").shape == (3, 2, 53, 16)
    assert len([*runner.cache.views(slice(0, 3))]) == 6


def test_calls_write_their_rows_of_the_cache_only(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    prefill(runner, 0, random_tokens(4).tolist())
    prefill(runner, 2, random_tokens(6).tolist())
    before = runner.cache.array("past_key_values.1.key").copy()
    decode(runner, [2, 0], [5, 7])
    after = runner.cache.array("past_key_values.1.key")
    written = (before != after).any(axis=(1, 3))
    assert [np.flatnonzero(row).tolist() for row in written] == [[4], [], [6]]


def test_decode_answers_in_the_order_of_the_slots(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    for slot in (0, 2):
        prefill(runner, slot, random_tokens(4 + slot, seed=slot).tolist())
    swapped = decode(runner, [2, 0], [5, 7])
    for slot in (0, 2):
        runner.release(slot)
        prefill(runner, slot, random_tokens(4 + slot, seed=slot).tolist())
    np.testing.assert_array_equal(swapped[::-1], decode(runner, [0, 2], [7, 5]))


def test_logits_of_a_row_are_the_same_in_any_batch(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    prefill(runner, 1, random_tokens(9).tolist())
    alone = decode(runner, [1], [3])
    runner.release(1)
    for slot in (0, 1, 2):
        prefill(runner, slot, random_tokens(9 if slot == 1 else 4).tolist())
    np.testing.assert_array_equal(decode(runner, [0, 1, 2], [8, 3, 1])[1:2], alone)


def test_int4_is_the_same_in_any_batch_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """A lone token is half the work of a pair, which the kernel sums in another order."""
    model = save(dense_llama(hidden_size=256), tmp_path / "model")
    write_onnx(model, tmp_path / "onnx", PRECISIONS["int4"])
    for batch_invariant in (True, False):
        options = OnnxOptions(slots=3, threads=1, batch_invariant=batch_invariant)
        runner = load_runner(tmp_path / "onnx", options)
        for slot in (0, 1, 2):
            prefill(runner, slot, random_tokens(9, seed=slot).tolist())
        together = decode(runner, [0, 1, 2], [8, 3, 1])[1:2]
        runner.share(1, 1, 9)
        alone = decode(runner, [1], [3])
        np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
        if batch_invariant:
            np.testing.assert_array_equal(alone, together)
        assert {call.num_tokens for call in runner._decode_calls} == {4, 1 + batch_invariant}


def test_returned_logits_outlive_the_next_call(folder: Path) -> None:
    runner = load_runner(folder, SIZES)
    prefill(runner, 0, [1, 2, 3])
    first = decode(runner, [0], [4])
    kept = first.copy()
    decode(runner, [0], [5])
    np.testing.assert_array_equal(first, kept)


def test_too_many_tokens_for_logits(folder: Path) -> None:
    with pytest.raises(EngineError, match="49 tokens do not fit this runner's max_model_len of 48"):
        all_logits(load_runner(folder, SIZES), random_tokens(49))


def test_loading_says_what_the_weights_are_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A separate cache, since another test may have built the graph of the same model.
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    model = save(dense_llama(), tmp_path / "model")
    with caplog.at_level(logging.INFO):
        options = OnnxOptions(slots=2, max_model_len=9, precision="int4", kv_cache_dtype="int8")
        load_slot_engine("onnx", model, options)
    assert "in int4 with an int8 KV cache in " in caplog.text
    assert "onnx engine: weights int4 in blocks of 128, slots=2 max_model_len=9" in caplog.text
    assert "bytes a token in int8" in caplog.text


def test_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.onnx is missing; write it with `sgate convert"):
        OnnxEngine.load(tmp_path)


def test_graph_of_another_version(folder: Path, tmp_path: Path) -> None:
    newer = broken_copy(folder, tmp_path / "newer", {"sgate.onnx_version": "4"})
    message = r"graph format version '4', this release reads 3; convert the model again"
    with pytest.raises(EngineError, match=message):
        load_runner(newer, SIZES)
    with pytest.raises(EngineError, match=message):
        onnx.residuals(newer, random_tokens(3))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("capacity", None, "metadata sgate.capacity is missing"),
        ("capacity", "0", "metadata sgate.capacity is '0', not a whole number of at least 1"),
        ("kind", None, "metadata sgate.kind is missing"),
        ("kind", "chat", "sgate.kind is 'chat', not one of generate, classify, embed"),
        ("num_layers", None, "metadata sgate.num_layers is missing"),
        ("num_layers", "ten", "sgate.num_layers is 'ten', not a whole number of at least 0"),
        ("row_multiple", "0", "sgate.row_multiple is '0', not a whole number of at least 1"),
        ("block", "-1", "sgate.block is '-1', not a whole number of at least 0"),
    ],
)
def test_damaged_metadata(
    folder: Path, tmp_path: Path, key: str, value: str | None, said: str
) -> None:
    damaged = broken_copy(folder, tmp_path / "damaged", {f"sgate.{key}": value})
    with pytest.raises(EngineError) as caught:
        load_runner(damaged, SIZES)
    assert str(caught.value).startswith(f"{damaged / 'model.onnx'}: ")
    assert str(caught.value).endswith(f"{said}; convert the model again")


def test_a_graph_that_does_not_run_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    damaged = broken_copy(folder, tmp_path / "damaged", {}, axis=1)
    said = r"damaged/model\.onnx: ONNX Runtime .* cannot run it \(.*Gather.*\); convert the model"
    with pytest.raises(EngineError, match=said) as caught:
        load_runner(damaged, SIZES)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(EngineError, match=said):
        onnx.residuals(damaged, random_tokens(3))


def test_what_is_missing_of_a_graph_is_named(folder: Path, tmp_path: Path) -> None:
    damaged = broken_copy(folder, tmp_path / "damaged", {})
    graph = ir.load(damaged / "model.onnx")
    (logits,) = (value for value in graph.graph.outputs if value.name == "logits")
    logits.name = "scores"
    ir.save(graph, damaged / "model.onnx")
    with pytest.raises(EngineError, match=r"model\.onnx: it has no logits; convert the model"):
        load_runner(damaged, SIZES)
    (stream,) = (v for n in graph.graph for v in n.outputs if v.name == "layer.0.residual")
    stream.name = "stream"
    ir.save(graph, damaged / "model.onnx")
    with pytest.raises(EngineError, match=r"value layer\.0\.residual is missing; convert the mod"):
        onnx.residuals(damaged, random_tokens(3))


def test_past_keys_of_another_type_are_refused(folder: Path) -> None:
    value = SimpleNamespace(name="past_key_values.0.key", type="tensor(double)", shape=[1, 2, 3, 4])
    inputs = [SimpleNamespace(name=name) for name in CALL_INPUTS]
    logits = SimpleNamespace(name="logits", type="tensor(float)", shape=["n", 9])
    session = SimpleNamespace(get_inputs=lambda: [*inputs, value], get_outputs=lambda: [logits])
    with pytest.raises(EngineError, match=r"0\.key is a tensor\(double\) of \[1, 2, 3, 4\], which"):
        check_interface(session, folder)


def test_a_call_without_memory_is_no_damage() -> None:
    error = cannot_run(Path("m.onnx"), RuntimeError("Failed to allocate memory for 9 bytes\nat x"))
    assert str(error).endswith(
        "cannot run it (Failed to allocate memory for 9 bytes); free some "
        "memory, or ask for less of it"
    )


@pytest.mark.parametrize(
    ("place", "remedy"),
    [("folder", "convert the model again"), ("cache/onnx/key", "delete this folder, and it is")],
)
def test_truncated_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, remedy: str
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    target = tmp_path / place
    target.mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data"):
        data = (folder / name).read_bytes()
        (target / name).write_bytes(data if name == "model.onnx" else data[: len(data) // 2])
    with pytest.raises(
        EngineError, match=rf"model\.onnx: ONNX Runtime .* cannot load it.*{remedy}"
    ):
        load_runner(target, SIZES)


@pytest.mark.parametrize(
    ("precision", "cache"),
    [("int8", "auto"), ("int4", "auto"), ("fp32", "int8"), ("fp16", "int8"), ("int8", "int8")],
)
def test_in_integers_a_shared_prefix_gives_the_same_bits(
    precision: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    model = save(dense_llama(hidden_size=128), tmp_path / "model")
    sizes = SlotOptions(slots=2, max_model_len=96, threads=1, prefill_chunk=8)
    options = OnnxOptions(**vars(sizes), precision=precision, kv_cache_dtype=cache)
    engine = load_slot_engine("onnx", model, options)
    sampling = SamplingParams(max_tokens=9, temperature=0.0, logprobs=0)

    def answer(tokens: tuple[int, ...]) -> tuple[list[TokenEvent], int]:
        engine.add(Request("a", tokens, sampling))
        events: list[TokenEvent] = []
        while engine.has_work():
            events += engine.step()
        return [replace(event, num_cached=0) for event in events], events[0].num_cached

    start = prompt(37)
    said, _ = answer(start)
    turn = (*start, *(event.token or 0 for event in said), *prompt(6, 1))
    # Whole chunks of what was a prompt.
    for tokens, shared in ((start, 32), (turn, 32), (turn, 48), (turn[:20], 16), (turn[:8], 0)):
        warm, num_cached = answer(tokens)
        assert num_cached == shared
        engine.forget_prefixes()
        cold, _ = answer(tokens)
        assert warm == cold
        if tokens is not turn:
            answer(start)
    engine.close()


def test_what_is_cut_off_a_slot_returns_its_memory(folder: Path) -> None:
    runner = load_runner(folder, SlotOptions(slots=2, max_model_len=250, threads=1))
    for slot in (0, 1):
        prefill(runner, slot, random_tokens(200).tolist())
    keys = runner.cache.array("past_key_values.1.key")
    before = keys.copy()
    page = mmap.PAGESIZE // (keys.shape[-1] * keys.itemsize)
    runner.share(0, 0, 10)
    np.testing.assert_array_equal(keys[1], before[1])
    np.testing.assert_array_equal(keys[0, :, :10], before[0, :, :10])
    # All but the pages at the ends of each head.
    assert not keys[0, :, 10 + page : 200 - page].any()
    assert before[0, :, 10 + page : 200 - page].any()


def test_a_closed_engine_keeps_no_model(folder: Path) -> None:
    engine = OnnxEngine.load(folder, SIZES)
    runner = weakref.ref(engine.runner)
    engine.close()
    assert runner() is None
