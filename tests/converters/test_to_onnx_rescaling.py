"""Int8 products in rows: channels of different magnitudes, and what `verify` compares."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaForCausalLM

from converters.to_onnx import write_onnx
from converters.to_onnx.comparison import first_difference
from converters.to_onnx.rescaling import (
    largest_of_columns,
    norm_readers,
    suitable_exponents,
    zero_exponents,
)
from converters.to_onnx.writer import build_graph, rescaling_exponents, save_graph
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.onnx.engine import GraphInfo, load_runner
from sgate_serve.engines.runner import all_logits
from sgate_serve.onnx_format.names import GRAPH_FILE
from sgate_serve.onnx_format.precision import PRECISIONS, Precision, precision_named, suited_to
from tests.converters.test_to_onnx_precision import SIZES, error_of_most
from tests.families.test_equivalence import converted
from tests.families.zoo import ON_ENGINES
from tests.small_llama import dense_llama, random_tokens, reference_logits, save

INT8 = PRECISIONS["int8"]
ROWS = replace(INT8, in_rows=True)


def with_large_channels() -> LlamaForCausalLM:
    """Return a model in which norms magnify two channels, as real ones do, and remove one."""
    model = dense_llama()
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[torch.tensor([3, 17])] *= 300
            norm.weight.data[5] = 0
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight.data[:, [3, 17]] /= 300
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight.data[:, [3, 17]] /= 300
            linear.weight.data[:, 8] = 0
    return model


def test_large_channels_do_not_make_the_others_coarse(tmp_path: Path) -> None:
    model, tokens = with_large_channels(), random_tokens(40)
    checkpoint, exact = save(model, tmp_path / "model"), reference_logits(model, tokens)
    # The norms before the blocks, and the one before the head.
    assert len(norm_readers(checkpoint, ROWS)) == 2 * len(checkpoint.spec.layers) + 1
    assert list(norm_readers(checkpoint, INT8)) == ["model.norm"]
    zeros = zero_exponents(checkpoint, ROWS)
    graphs = {
        "blocks": build_graph(checkpoint, INT8),
        "unscaled": build_graph(checkpoint, ROWS, exponents=zeros),
    }
    for name, graph in graphs.items():
        (tmp_path / name).mkdir()
        save_graph(graph, tmp_path / name)
    write_onnx(checkpoint, tmp_path / "rescaled", ROWS)
    errors = {
        name: error_of_most(all_logits(load_runner(tmp_path / name, SIZES), tokens), exact)
        for name in ("blocks", "unscaled", "rescaled")
    }
    graphs = {name: ir.load(tmp_path / name / GRAPH_FILE) for name in errors}
    words = {
        name: GraphInfo.read(one.metadata_props, tmp_path).weights for name, one in graphs.items()
    }
    assert words["blocks"] == "int8 in blocks of 64"
    assert words["rescaled"] == words["unscaled"] == "int8 in rows and blocks of 64"
    # A block of 64 is coarse too, where large channels are in it.
    assert 5 * errors["rescaled"] < min(errors["unscaled"], errors["blocks"])
    assert errors["rescaled"] < 0.1
    # A graph of another CPU has blocks only, one of an older release no rescaled norm either: both
    # are as right, but not rows without.
    for name in errors:
        is_right = first_difference(checkpoint, tmp_path / name, INT8) is None
        assert is_right == (name != "unscaled")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("held", [INT8, ROWS, PRECISIONS["int4"]], ids=["int8", "rows", "int4"])
def test_large_channels_before_the_head_do_not_either(
    held: Precision, tied: bool, tmp_path: Path
) -> None:
    model, tokens = dense_llama(tie_word_embeddings=tied), random_tokens(40)
    model.model.norm.weight.data[torch.tensor([3, 17])] *= 300
    model.lm_head.weight.data[:, [3, 17]] /= 300
    checkpoint, exact = save(model, tmp_path / "model"), reference_logits(model, tokens)
    assert checkpoint.spec.tied_head == tied
    (tmp_path / "unscaled").mkdir()
    unscaled = build_graph(checkpoint, held, exponents=zero_exponents(checkpoint, held))
    save_graph(unscaled, tmp_path / "unscaled")
    write_onnx(checkpoint, tmp_path / "rescaled", held)
    errors = {
        name: error_of_most(all_logits(load_runner(tmp_path / name, SIZES), tokens), exact)
        for name in ("unscaled", "rescaled")
    }
    exponents = rescaling_exponents(checkpoint, held, tmp_path)["model.norm"]
    assert min(exponents[[3, 17]]) > 2
    assert errors["rescaled"] < 0.5 * errors["unscaled"], errors
    assert first_difference(checkpoint, tmp_path / "rescaled", held) is None


def in_rows(checkpoint: Checkpoint) -> list[set[str]]:
    """Return what is multiplied in rows in each layer, by the names of roles."""
    graph = build_graph(checkpoint, ROWS, exponents=zero_exponents(checkpoint, ROWS)).graph
    weights = (node.inputs[1] for node in graph if node.op_type == "MatMulIntegerToFloat")
    found: list[set[str]] = [set() for _ in checkpoint.spec.layers]
    for weight in weights:
        assert weight is not None
        *_, layer, roles, _ = f"{weight.name}".split(".")
        found[int(layer)].add(roles)
    return found


def test_only_even_inputs_are_multiplied_in_rows(tmp_path: Path) -> None:
    """A few channels of the stream are large where no norm before a block can be rescaled."""
    every = {"query_key_value", "output", "gate_up"}
    assert in_rows(save(dense_llama(), tmp_path / "llama")) == [every] * 3
    for name, options in (("llama-plain", {"index_price": 0}), ("olmo2-tied", {})):
        (tmp_path / name).mkdir()
        variant = next(v for v in ON_ENGINES if str(v) == name)
        out = Checkpoint.open(converted(variant, tmp_path / name, 1, **options)["out"])
        assert any(layer.num_heads for layer in out.spec.layers)
        assert set.union(*in_rows(out)) == {"output"}, name
    variant = next(v for v in ON_ENGINES if str(v) == "qwen3_5_text-biased-half-rotary")
    out = Checkpoint.open(converted(variant, tmp_path, 1)["out"])
    with_heads = [(i, layer) for i, layer in enumerate(out.spec.layers) if layer.num_heads]
    assert {layer.is_recurrent for _, layer in with_heads} == {False, True}
    roles = in_rows(out)
    assert all(("output" in roles[i]) == (not layer.is_recurrent) for i, layer in with_heads)


@pytest.mark.parametrize("part", ["input_layernorm.weight", "qkv.values", "qkv.scales"])
def test_another_weight_is_found(part: str, tmp_path: Path) -> None:
    """Quotients of a norm's weights are exponents only if they are powers of two."""
    checkpoint = save(dense_llama(), tmp_path / "model")
    write_onnx(checkpoint, tmp_path / "onnx", ROWS)
    graph = ir.load(tmp_path / "onnx" / GRAPH_FILE)
    names = [name for name in graph.graph.initializers if name.startswith("model.layers.1.")]
    (name,) = (name for name in names if name.endswith(part.replace("qkv", "query_key_value")))
    value = graph.graph.initializers[name]
    assert value.const_value is not None
    changed = value.const_value.numpy().copy()
    changed.reshape(-1)[4] *= 3
    value.const_value = ir.tensor(changed, name=name)
    (tmp_path / "changed").mkdir()
    save_graph(graph, tmp_path / "changed")
    found = first_difference(checkpoint, tmp_path / "changed", INT8)
    assert found is not None and "is not that of the folder's tensors" in found


def test_exponents_even_out_channels_and_columns() -> None:
    reached = np.array([64, 1, 0, 8, 1e30, 1e-30, 1], np.float32)
    column = np.array([1, 16, 1, 0, 1e-10, 1, 1], np.float32)
    even = suitable_exponents(reached, column, 0.5)
    np.testing.assert_array_equal(even, [3, -2, 0, 0, 15, -15, 0])
    # Four times as large in all channels, or of another share: 64^(3/4) / 1, 1 / 16^(1/4).
    np.testing.assert_array_equal(suitable_exponents(4 * reached, column, 0.5), even)
    assert list(suitable_exponents(reached, column, 0.75)[:2]) == [4, -1]
    assert not suitable_exponents(0 * reached, column, 0.5).any()
    assert not suitable_exponents(np.full(7, np.inf, np.float32), column, 0.5).any()


def test_a_row_does_not_decide_for_the_others() -> None:
    weight = np.array([[1, 2, 0, 1], [-2, 1, 0, 1], [1, 1, 0, 2], [0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(largest_of_columns(weight), [2, 2, 0, 2])
    weight[3] = [1000, 0, -4000, 2000]  # as if it were [2, 0, -8, 4]
    np.testing.assert_array_equal(largest_of_columns(weight), [2, 2, 8, 4])
    assert not largest_of_columns(0 * weight).any()


def test_graphs_are_compared_without_a_cache_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(dense_llama(), tmp_path / "model")
    write_onnx(checkpoint, tmp_path / "onnx", ROWS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "file" / "cache"))
    assert first_difference(checkpoint, tmp_path / "onnx", INT8) is None


@pytest.mark.parametrize(("precision", "offset"), [("fp32", 0), ("int8", 6)])
def test_rows_that_a_conversion_would_not_write_are_found(
    precision: str, offset: int, tmp_path: Path
) -> None:
    """Rows in another precision, and exponents that make the rounding coarse."""
    model = dense_llama()
    # The column says nothing of the exponent then.
    model.model.layers[0].mlp.gate_proj.weight.data[:, 7] = 0
    model.model.layers[0].mlp.up_proj.weight.data[:, 7] = 0
    checkpoint = save(model, tmp_path / "model")
    exponents = {norm: own.copy() for norm, own in zero_exponents(checkpoint, ROWS).items()}
    for own in exponents.values():
        own[7] = offset
    (tmp_path / "onnx").mkdir()
    save_graph(build_graph(checkpoint, ROWS, exponents=exponents), tmp_path / "onnx")
    assert first_difference(checkpoint, tmp_path / "onnx", PRECISIONS[precision]) is not None


def test_rows_are_for_int8_on_cpus_with_vnni() -> None:
    for flag in ("amx_int8", "avx512_vnni", "avx_vnni"):
        assert suited_to(INT8, {"avx2", flag}) == ROWS
        for name in ("fp32", "fp16", "int4"):
            assert suited_to(PRECISIONS[name], {flag}) == PRECISIONS[name]
        assert suited_to(precision_named("int8", is_encoder=True), {flag}).block is None
    with_cache = replace(INT8, int8_cache=True)
    assert suited_to(with_cache, {"avx512_vnni"}) == replace(with_cache, in_rows=True)
    assert suited_to(INT8, {"avx2", "avx512f", "amx_bf16"}) == INT8
