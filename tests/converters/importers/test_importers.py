"""Masks of each kind, converted, against a model that applies its gates at run time."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from converters.convert import ConvertOptions, convert, open_masked
from converters.importers import KINDS, read_gates
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.gates import Gates
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import LayerPlan, Plan
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.importers.gated_llama import (
    LINEARS,
    GatedLlama,
    gate_linears,
    gated_tensors,
)
from tests.families.zoo import ZOO, build, token_batch
from tests.small_llama import dense_llama, random_tokens, reference_logits, save

# fp32 sums in another order; a wrong slice is off by more than 1e-2.
TOLERANCE = 2e-5
TOKENS = random_tokens(24)


def check_equal(expected: Floats, found: Floats) -> None:
    assert np.abs(expected - found).max() < TOLERANCE * np.abs(expected).max()


def check_converted(gated: GatedLlama, gates: Path, out: Path) -> Plan:
    """Convert; compare run-time gates with masked dense, with the small model, and verify."""
    base = gated.base.folder
    plan = convert(ConvertOptions(str(base), out, gates))
    expected = gated.logits(TOKENS)
    check_equal(expected, TorchModel.masked_dense(open_masked(base, gates)).logits(TOKENS))
    check_equal(expected, TorchModel.converted(out).logits(TOKENS))
    return plan


def dead_units(gated: GatedLlama, layer: int) -> set[int]:
    """MLP units that cannot matter: never read, or one factor of act(gate) · up is always 0."""
    unread = gated.gated(layer, "mlp.down_proj").gates_columns.is_closed
    no_up = gated.gated(layer, "mlp.up_proj").gates_rows.is_closed
    no_gate = gated.gated(layer, "mlp.gate_proj").gates_rows.is_closed
    return set(np.flatnonzero(unread | no_up | no_gate).tolist())


def revived_units(layer: LayerPlan) -> set[int]:
    return {index for one in layer.revivals if one.axis == "mlp_units" for index in one.indices}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(sorted(KINDS)),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 2)]),
    tied=st.booleans(),
    bias=st.booleans(),
    add_biases=st.booleans(),
)
def test_random_row_col_masks_convert_exactly_and_lose_every_dead_unit(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    kind: str,
    heads: tuple[int, int],
    tied: bool,
    bias: bool,
    add_biases: bool,
) -> None:
    root = tmp_path_factory.mktemp("random")
    model = dense_llama(
        seed,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    gated = GatedLlama.wrap(model, root / "base", seed, add_biases)
    plan = check_converted(gated, gated.save(kind, root / "gates"), root / "out")
    for layer in plan.layers:
        dead = dead_units(gated, layer.index)
        assert dead
        assert set(layer.mlp_units) & dead <= revived_units(layer)
        assert set(layer.mlp_units) | dead == set(range(30))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tied", "add_biases"), [(True, True), (True, False), (False, True)])
def test_a_gated_head_is_untied_and_keeps_its_bias(
    tmp_path: Path, kind: str, tied: bool, add_biases: bool
) -> None:
    """As the authors gate a Llama: every linear, lm_head too."""
    model = dense_llama(tie_word_embeddings=tied)
    linears = (*LINEARS, "lm_head")
    gated = GatedLlama.wrap(model, tmp_path / "base", 0, add_biases, linears)
    gates = gated.save(kind, tmp_path / "gates")
    check_converted(gated, gates, tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    assert not out.spec.tied_head
    assert ("lm_head" in out.spec.extra_biases) == add_biases
    result = verify(VerifyOptions(str(gated.base.folder), str(out.folder), gates, "torch"))
    assert result.passed and result.tensors_equal, result.difference


def test_column_gates_of_a_tied_head_go_into_the_norm_before(tmp_path: Path) -> None:
    base = save(dense_llama(tie_word_embeddings=True), tmp_path / "base")
    columns = np.linspace(0, 1, 48, dtype=np.float32)
    values = {"lm_head.columns": columns}
    Gates("test", "llama", "row-col", base.fingerprint, values).write(tmp_path / "gates")
    convert(ConvertOptions(str(base.folder), tmp_path / "out", tmp_path / "gates"))
    out = Checkpoint.open(tmp_path / "out")
    assert out.spec.tied_head and out.config["model_type"] == "llama"
    model = dense_llama(tie_word_embeddings=True)
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * torch.from_numpy(columns),))
    check_equal(reference_logits(model, TOKENS), TorchModel.converted(out.folder).logits(TOKENS))


def test_an_encoder_of_the_authors_converts(tmp_path: Path) -> None:
    """As the authors gate RoBERTa: query, key, value, outputs and intermediates."""
    variant = next(variant for variant in ZOO["roberta"] if variant.task == "classification")
    model = build(variant, seed=0)
    model.save_pretrained(tmp_path / "base")
    gate_linears(model, ("query", "key", "value", "output.dense", "intermediate.dense"), 0, False)
    (tmp_path / "gates").mkdir()
    save_file(gated_tensors(model), tmp_path / "gates" / "model.safetensors")
    tokens = token_batch(variant, 0)[:1]
    with torch.no_grad():
        expected = model(tokens).logits.numpy()
    for price in (0, None):
        out = tmp_path / f"out-{price}"
        convert(ConvertOptions(str(tmp_path / "base"), out, tmp_path / "gates", index_price=price))
        check_equal(expected, TorchModel.converted(out).logits(tokens[0].numpy()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_each_kind_verifies(tmp_path: Path, kind: str, engine: str) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base", add_biases=True)
    base, out = str(gated.base.folder), tmp_path / "out"
    gates = gated.save(kind, tmp_path / "gates")
    convert(ConvertOptions(base, out, gates, ("hf", "onnx"), gates_kind=kind))
    result = verify(VerifyOptions(base, str(out), gates, engine, gates_kind=kind))
    assert result.passed and result.tensors_equal, result.difference


def test_what_slicing_cannot_remove_stays_as_zeros(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    plan = check_converted(gated, gated.save_peft(tmp_path / "gates"), tmp_path / "out")
    out, query = Checkpoint.open(tmp_path / "out"), gated.gated(0, "self_attn.q_proj")
    is_zero = out.read("model.layers.0.self_attn.q_proj.weight") == 0
    np.testing.assert_array_equal(is_zero.all(axis=1), query.gates_rows.is_closed)
    np.testing.assert_array_equal(is_zero.all(axis=0), query.gates_columns.is_closed)
    assert all(len(layer.heads) == 4 for layer in plan.layers)


def test_row_gates_multiply_the_added_bias(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base", add_biases=True)
    gates = gated.save_finegates(tmp_path / "gates")
    output = gated.gated(1, "self_attn.o_proj")
    found = open_masked(gated.base.folder, gates).read("model.layers.1.self_attn.o_proj.bias")
    assert output.bias is not None
    expected = output.bias.detach().numpy() * output.gates_rows.read_outs
    # numpy's tanh and torch's differ in the last bit.
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found == 0).any()


def test_gates_on_some_linears_and_sides_leave_the_others_open(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    name = "model.layers.0.mlp.down_proj.gates_columns._gates_logits"
    (tmp_path / "gates").mkdir()
    save_file({name: gated.finegates_tensors()[name]}, tmp_path / "gates" / "model.safetensors")
    masked = open_masked(gated.base.folder, tmp_path / "gates" / "model.safetensors")
    closed = gated.gated(0, "mlp.down_proj").gates_columns.is_closed
    down = masked.masks["model.layers.0.mlp.down_proj"]
    assert list(masked.masks) == ["model.layers.0.mlp.down_proj"] and down.rows is None
    assert down.columns is not None
    np.testing.assert_array_equal(down.columns == 0, closed)


def test_sharded_checkpoints_are_read_by_their_index(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base", add_biases=True)
    folder = tmp_path / "gates"
    folder.mkdir()
    tensors = gated.finegates_tensors()
    weight_map = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({k: v for k, v in tensors.items() if weight_map[k] == file}, folder / file)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_converted(gated, folder, tmp_path / "out")


def test_whole_tensors_beside_the_gates_replace_the_bases(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    with torch.no_grad():
        gated.model.model.norm.weight.uniform_(0.5, 1.5)
    norm = gated.model.model.norm.weight.detach()
    folder = gated.save_peft(tmp_path / "gates")
    tensors = gated.peft_tensors() | {"base_model.model.model.norm.weight": norm}
    save_file(tensors, folder / "adapter_model.safetensors")
    check_converted(gated, folder, tmp_path / "out")


def test_a_logit_on_the_threshold_is_closed(tmp_path: Path) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    name = "base_model.model.model.layers.0.mlp.down_proj.finegates_columns"
    threshold = np.arctanh(-0.5)
    tensors = gated.peft_tensors()
    tensors[name] = torch.tensor([threshold - 1e-6, threshold + 1e-3, *[0.0] * 28])
    folder = gated.save_peft(tmp_path / "gates")
    save_file(tensors, folder / "adapter_model.safetensors")
    columns = open_masked(gated.base.folder, folder).masks["model.layers.0.mlp.down_proj"].columns
    assert columns is not None
    assert columns[0] == 0 and 0 < columns[1] < 0.01
    np.testing.assert_array_equal(columns[2:], 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_every_float_dtype_are_read_out_in_fp32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    folder = gated.save_peft(tmp_path / "gates")
    tensors = {name: tensor.to(dtype) for name, tensor in gated.peft_tensors().items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    for name, gate in open_masked(gated.base.folder, folder).masks.items():
        logits = tensors[f"base_model.model.{name}.finegates_rows"].float()
        expected = (torch.tanh(logits) + 0.5).clamp(0, 1).numpy()
        assert gate.rows is not None and gate.rows.dtype == np.float32
        np.testing.assert_allclose(gate.rows, expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "title"), [(name, kind.title) for name, kind in KINDS.items()])
def test_the_command_says_the_kind_aloud(tmp_path: Path, kind: str, title: str) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    gates = gated.save(kind, tmp_path / "gates")
    words = [sys.executable, "-m", "sgate_serve.cli", "plan", str(gated.base.folder)]
    result = subprocess.run(
        [*words, "--gates", str(gates), "--gates-kind", kind], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, f"gates: {title}, 21 linears\n")


def test_gates_from_before_digests_come_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gated = GatedLlama.wrap(dense_llama(), tmp_path / "base")
    gates = replace(Gates.read(gated.save("sgate", tmp_path / "new")), base_digest=None)
    gates.write(tmp_path / "old")
    with caplog.at_level(logging.WARNING):
        read_gates(tmp_path / "new", gated.base)
        assert not caplog.text
        read_gates(tmp_path / "old", gated.base)
    assert "only the first and last 4 KiB of each tensor are compared with" in caplog.text
