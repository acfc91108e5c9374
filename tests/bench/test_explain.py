"""Where time goes: pieces of every engine here, the machine's rates, and what follows in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import HOST, Attribution, attribute
from sgate_serve.bench.explain.explanation import check_explainable, multiplied_in
from sgate_serve.bench.explain.sentences import MODELS, sentences
from sgate_serve.bench.ideal import decode_bytes, weight_bytes
from sgate_serve.bench.workload import PoolingWorkload, Workload, steps_of
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import ENGINES, import_object
from sgate_serve.engines.work import (
    ATTENDING,
    EMBEDDING,
    HEAD,
    INDEX,
    NORMS,
    PROJECTIONS,
    UNITS,
    Piece,
    Work,
)
from sgate_serve.errors import EngineError
from sgate_serve.loaders.graph_cache import onnx_folder
from sgate_serve.onnx_format.names import GRAPH_FILE
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision
from tests.converters.test_to_onnx_lowered import converted, row_col_gates, write_base
from tests.families.zoo import ZOO, build
from tests.small_llama import dense_llama, save

SMALL = Workload(
    rounds=1, decode_steps=3, context_tokens=4, prefill_tokens=8, threads=1, batches=(1, 2)
)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_kinds_of_work_add_up_to_the_time_of_a_phase(tmp_path: Path, engine: str) -> None:
    base = save(dense_llama(), tmp_path / "base")
    found = attribute({DENSE: base, PRUNED: base}, engine, SMALL)
    assert list(found) == ["decode_batch_1", "decode_batch_2", "prefill"]
    for by_model in found.values():
        assert list(by_model) == [DENSE, PRUNED]
        for one in by_model.values():
            assert sum(one.kinds.values()) == pytest.approx(one.seconds)
            assert 0 < one.kinds[HOST] < one.seconds
            assert {PROJECTIONS, ATTENDING, UNITS, NORMS, EMBEDDING, HEAD, HOST} <= one.kinds.keys()
            assert all({PROJECTIONS, ATTENDING, UNITS} <= layer.keys() for layer in one.layers)
            inside = sum(layer[UNITS] for layer in one.layers)
            # Each layer has its own shortest run.
            assert 0 < inside <= one.kinds[UNITS] * (1 + 1e-9)


def test_torch_times_index_work_apart(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    converted(base, row_col_gates(base, 0.5))
    found = attribute({PRUNED: Checkpoint.open(tmp_path / "out")}, "torch", SMALL)
    kinds = found["prefill"][PRUNED].kinds
    assert {INDEX, PROJECTIONS, UNITS} <= kinds.keys()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_encoders_are_explained_by_batch(family: str, tmp_path: Path) -> None:
    build(ZOO[family][0], seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    workload = PoolingWorkload(rounds=1, prefill_tokens=8, threads=1, batches=(2,))
    (found,) = attribute({DENSE: base}, "onnx", workload).values()
    assert {PROJECTIONS, ATTENDING, UNITS, NORMS, EMBEDDING} <= found[DENSE].kinds.keys()


def test_pieces_outside_of_layers_count_to_no_layer() -> None:
    pieces = [Piece(Work(HEAD), 0, 0.25), Piece(Work(UNITS, 1), 1, 0.5)]
    found = Attribution.of(pieces, 1.0, 2)
    assert found.kinds == {UNITS: 0.5, HEAD: 0.25, HOST: 0.25}
    assert found.layers == [{}, {UNITS: 0.5}]
    assert found.per(2).kinds[UNITS] == 0.25


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_machine_has_rates(engine: str) -> None:
    rates = import_object(f"{ENGINES[engine].machine_rates}")(1)
    assert rates.read_bytes > 1e8 and rates.copied_bytes > 1e8
    assert set(rates.products) == {"fp32", "int8" if engine == "onnx" else "bf16"}
    assert min(rates.products.values()) > 1e9


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_of_all_kinds_are_those_of_a_decode_step(tmp_path: Path, precision: str) -> None:
    spec = save(dense_llama(), tmp_path / "base").spec
    found = weight_bytes(spec, PRECISIONS[precision])
    assert sum(found.values()) == pytest.approx(decode_bytes(spec, PRECISIONS[precision]))
    if precision == FP32:
        units = sum(layer.mlp_units for layer in spec.layers)
        assert found[UNITS] == 4 * 3 * spec.hidden_size * units
        assert found[HEAD] == 4 * spec.vocab_size * spec.hidden_size


def test_no_piece_of_a_run_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(dense_llama(), tmp_path / "base")
    counts: list[int] = []
    plain = Attribution.of

    def counted(pieces: Sequence[Piece], seconds: float, num_layers: int) -> Attribution:
        counts.append(len(pieces))
        return plain(pieces, seconds, num_layers)

    monkeypatch.setattr(Attribution, "of", counted)
    found = attribute({DENSE: base}, "onnx", SMALL)
    assert all(one[DENSE].seconds > 0 for one in found.values())
    nodes = len(list(ir.load(onnx_folder(base) / GRAPH_FILE).graph))
    assert [steps_of(SMALL, phase) for phase in found] == [3, 3, 1]
    runs = len(counts) // 3
    assert runs == 6
    # ONNX Runtime may drop nodes or add some, but as many in every step.
    steps = [steps_of(SMALL, phase) for phase in found for _ in range(runs)]
    nums = [count / num for count, num in zip(counts, steps, strict=True)]
    assert all(num.is_integer() and 0.8 * nodes <= num <= 1.2 * nodes for num in nums)


def phase(**kinds: float) -> dict[str, Any]:
    named = {
        "projections": PROJECTIONS,
        "attending": ATTENDING,
        "units": UNITS,
        "head": HEAD,
        "index": INDEX,
        "host": HOST,
    }
    return {
        "seconds": sum(kinds.values()),
        "kinds": {named[name]: seconds for name, seconds in kinds.items()},
        "layers": [{UNITS: 0.01}, {UNITS: 0.02}],
    }


def explanation(**changes: Any) -> dict[str, Any]:
    """Return a record with round numbers: the MLP lost half of its weights."""
    weights = {PROJECTIONS: 20e6, UNITS: 50e6, HEAD: 30e6, NORMS: 0.0}
    dense = {"weights": weights, "weight_bytes": weights, "kv_groups": [2, 2]}
    pruned = dense | {"weights": weights | {UNITS: 25e6}, "weight_bytes": weights | {UNITS: 25e6}}
    record = {
        "phases": {
            "decode_batch_1": {
                DENSE: phase(projections=0.02, attending=0.01, units=0.05, head=0.015, host=0.005),
                PRUNED: phase(
                    projections=0.02, attending=0.01, units=0.035, index=0.005, head=0.01, host=0.02
                ),
            }
        },
        "measured": {"decode_batch_1": 1.0},
        "ideal": {"decode_batch_1": 1.25},
        "models": {
            DENSE: dense | {"mlp_units": [64, 64], "mlp_widths": [64, 64]},
            PRUNED: pruned | {"mlp_units": [32, 33], "mlp_widths": [32, 33]},
        },
        "machine": {
            "read_bytes_per_second": 10e9,
            "operations_per_second": {"fp32": 100e9, "int8": 400e9},
            "cache_bytes": 2**30,
        },
        "achieved": {
            "decode_batch_1": {
                DENSE: {"bytes_per_second": 5e9, "share": 0.5},
                PRUNED: {"bytes_per_second": 2.5e9, "share": 0.25},
            }
        },
    }
    return record | changes


def test_sentences_follow_from_the_figures() -> None:
    found = sentences(explanation())
    about_models, about_phase = found[MODELS], " ".join(found["decode_batch_1"])
    # Of 100 ms the ideal leaves 80; the host may take 4 of them and takes 20.
    assert about_models[0] == (
        "decode_batch_1: 1.00x measured, 1.25x ideal; most of what is missing is host (16.00 ms) "
        "and index work (5.00 ms)"
    )
    assert "none of the 4 KV groups was removed" in about_models[1]
    assert "72 MiB, fit the CPU's cache of 1,024 MiB" in about_models[2]
    assert "1 of 2 MLP widths are not multiples of 32" in about_models[3]
    # Products and attention are 80% of the time; the head is 30% of bytes and 15% of time.
    assert "80% of the dense model's time goes to" in about_phase and "at most 5.00x" in about_phase
    assert "the head is 30% of the bytes and 15% of the time" in about_phase
    assert "limits any speedup to 6.7x" in about_phase
    # Half of the weights, but 70% of the time: 10 ms of 100 more than in proportion.
    assert "MLP kept 50% of the weights and 70% of the time: 10.00 ms more" in about_phase
    assert "10% of the pruned model's time" in about_phase
    assert "attention projections kept 100% of the weights and 100% of the time" in about_phase
    assert "index work costs 5%" in about_phase and "--index-price" in about_phase
    assert "20% of the pruned model's time passes outside of its operators" in about_phase
    assert "5.00 ms dense, 20.00 ms pruned" in about_phase
    assert "5.0 and 2.5 GB/s of weights: 50% and 25% of the 10.0 GB/s" in about_phase


def test_sentences_are_only_of_what_is_there() -> None:
    record = explanation()
    record["models"][PRUNED] |= {"kv_groups": [2, 1], "mlp_widths": [32, 64]}
    # An encoder: its weights may fit the cache, but it does not decode.
    record["phases"] = {
        "batch_8": {
            DENSE: phase(projections=0.05, units=0.05),
            PRUNED: phase(projections=0.05, units=0.02),
        }
    }
    record["achieved"]["batch_8"] = {
        DENSE: {"operations_per_second": 50e9, "share": 0.5, "numbers": "fp32"},
        PRUNED: {"operations_per_second": 60e9, "share": None, "numbers": "bf16"},
    }
    record |= {"measured": {"batch_8": 1.4}, "ideal": {"batch_8": 1.42}}
    found = sentences(record)
    assert found[MODELS] == [
        "batch_8: 1.40x measured, 1.42x ideal",
        "1 of 4 KV groups were removed",
    ]
    text = " ".join(found["batch_8"])
    assert "any factor" in text and "head" not in text and "index" not in text
    assert "dense reaches 50.0 G operations/s in fp32 (50% of 100)" in text
    assert "pruned 60.0 G operations/s in bf16;" in text
    assert "MLP kept 50% of the weights and 40% of the time" in text and "more than" not in text


def test_a_profile_that_disagrees_is_not_to_be_read() -> None:
    (first, *_) = sentences(explanation(measured={"decode_batch_1": 1.3}))[MODELS]
    assert "1.30x measured" in first and "the profile says 1.00x" in first and "do not" in first


def test_zeros_in_dense_shapes_are_named() -> None:
    record = explanation()
    record["models"][PRUNED] = record["models"][DENSE]
    (only,) = sentences(record)[MODELS]
    assert "nothing was removed" in only and "`sgate convert` removes them" in only


def test_each_part_has_its_shortest_time() -> None:
    runs = [
        Attribution(1.0, {UNITS: 0.75, HOST: 0.25}, [{UNITS: 0.75}]),
        Attribution(1.5, {UNITS: 0.5, HOST: 1.0}, [{UNITS: 0.5}]),
    ]
    assert Attribution.least(runs) == Attribution(0.75, {UNITS: 0.5, HOST: 0.25}, [{UNITS: 0.5}])


def test_a_head_that_was_pruned_is_no_limit() -> None:
    record = explanation()
    record["models"][PRUNED]["weights"] = record["models"][PRUNED]["weights"] | {HEAD: 10e6}
    assert "the head" not in " ".join(sentences(record)["decode_batch_1"])


@pytest.mark.parametrize(
    ("precision", "products", "expected"),
    [
        (PRECISIONS["int8"], ("fp32", "int8"), "int8"),
        (PRECISIONS["int4"], ("fp32", "int8"), "int8"),
        (PRECISIONS["fp32"], ("fp32", "int8"), "fp32"),
        (PRECISIONS["fp16"], ("fp32", "int8"), "bf16"),
        # vLLM computes int8 weights in the type of the activations.
        (Precision("int8", 8, 16), ("fp32", "bf16"), "bf16"),
        (Precision("int8", 8, 32), ("fp32", "bf16"), "fp32"),
    ],
)
def test_products_are_compared_with_the_machines_in_their_type(
    precision: Precision, products: tuple[str, ...], expected: str
) -> None:
    assert multiplied_in(precision, dict.fromkeys(products, 1.0)) == expected


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(EngineError, match="on cuda is not known; explain a comparison on cpu"):
        check_explainable("onnx", Workload(engine_arguments=("--device", "cuda")))
    check_explainable("vllm", Workload(engine_arguments=("--dtype", "float32")))
