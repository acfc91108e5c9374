"""The ONNX graph of what the compiler leaves: gathers, scatters, narrow streams, added biases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert, open_masked
from converters.to_onnx import write_onnx
from converters.to_onnx.indices import inverse_index
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner, residuals
from sgate_serve.engines.runner import all_logits
from sgate_serve.gates import Gates
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Plan
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.engines.drive import decode, prefill
from tests.families.zoo import ON_ENGINES, ZOO, Variant, build
from tests.families.zoo_configs import VOCABULARY
from tests.small_llama import random_tokens

Values = dict[str, NDArray[np.float32]]

SUPPORTED = [v for v in ON_ENGINES if v.name != "longrope"]
LLAMA = ZOO["llama"][0]
OPTIONS = SlotOptions(slots=1, max_model_len=64, threads=1)
TOLERANCE = 1e-4
# A layer of 48 dimensions, 4 / 2 heads of 12 (padded to 16) and 30 units.
QUERY, KEY, VALUE, OUTPUT = (f"model.layers.0.self_attn.{n}_proj" for n in "qkvo")
GATE, UP, DOWN = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))


def row_col_gates(base: Checkpoint, closed: float, seed: int = 0) -> Values:
    """Return gates of every linear's rows and columns: a share closed, the others fractions."""
    generator, spec, values = np.random.default_rng(seed), base.spec, {}
    for module, index in spec.module_names().items():
        sides = zip(("rows", "columns"), spec.module_shape(index, module), strict=True)
        for side, size in sides:
            gates = generator.choice([1.0, 0.5, 0.25], size).astype(np.float32)
            gates[generator.permutation(size)[: round(closed * size)]] = 0
            values[f"{module}.{side}"] = gates
    return values


def closing(size: int, *positions: int) -> NDArray[np.float32]:
    gates = np.ones(size, np.float32)
    gates[list(positions)] = 0
    return gates


def write_base(root: Path, variant: Variant = LLAMA, **config: Any) -> Checkpoint:
    build(variant, seed=0, **config).save_pretrained(root / "base")
    return Checkpoint.open(root / "base")


def converted(base: Checkpoint, values: Values, **deltas: NDArray[np.float32]) -> Plan:
    """Convert with everything lowered that saves a single weight, to `out` with its graph."""
    root = base.folder.parent
    gates = Gates("test", base.spec.family.name, "row-col", base.fingerprint, values)
    gates.write(root / "gates", deltas)
    options = ConvertOptions(
        str(base.folder), root / "out", root / "gates", ("hf", "onnx"), index_price=0
    )
    return convert(options)


def check_against_masked_dense(root: Path) -> None:
    gates = root / "gates" if (root / "gates").exists() else None
    result = verify(VerifyOptions(str(root / "base"), str(root / "out"), gates, "onnx"))
    assert result.passed, result.difference
    assert result.tensors_equal and result.max_abs_diff < result.tolerance


def check_residuals(root: Path, plan: Plan) -> None:
    """Compare the stream after every layer, at the dimensions that are left of it."""
    gates = root / "gates" if (root / "gates").exists() else None
    # Above RoBERTa's padding id, which transformers gives no position of its own.
    tokens = 2 + random_tokens(9, vocab_size=VOCABULARY - 2)
    expected = TorchModel.masked_dense(open_masked(root / "base", gates)).residuals(tokens)
    found = residuals(root / "out" / "onnx", tokens)
    kept = slice(None) if plan.hidden is None else list(plan.hidden)
    for dense, small in zip(expected, found, strict=True):
        np.testing.assert_allclose(small, dense[:, kept], atol=TOLERANCE * np.abs(dense).max())


def operators(root: Path) -> list[str]:
    graph = ir.load(root / "out" / "onnx" / "model.onnx").graph
    return [node.op_type for node in graph]


@pytest.mark.parametrize("closed", [0.25, 0.6])
@pytest.mark.parametrize("variant", SUPPORTED, ids=str)
def test_row_col_gates_of_everything(tmp_path: Path, variant: Variant, closed: float) -> None:
    base = write_base(tmp_path, variant)
    plan = converted(base, row_col_gates(base, closed))
    lowered = Checkpoint.open(tmp_path / "out").spec.lowered.values()
    assert any(one.rows for one in lowered) and any(one.columns for one in lowered)
    check_against_masked_dense(tmp_path)
    check_residuals(tmp_path, plan)


@pytest.mark.parametrize("head_dim", [6, 16, 20])
def test_heads_of_any_width_are_scattered_to_padded_places(tmp_path: Path, head_dim: int) -> None:
    base = write_base(tmp_path, head_dim=head_dim)
    converted(base, row_col_gates(base, 0.3, seed=1))
    check_against_masked_dense(tmp_path)


def test_decoding_in_a_batch_equals_prefill(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    converted(base, row_col_gates(base, 0.3))
    runner = load_runner(tmp_path / "out" / "onnx", SlotOptions(3, 64, 1))
    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 7, 5)]
    for slot, prompt in enumerate(prompts):
        prefill(runner, slot, prompt[:-1])
    together = decode(runner, [0, 1, 2], [prompt[-1] for prompt in prompts])
    for slot in range(3):
        runner.release(slot)
    for prompt, found in zip(prompts, together, strict=True):
        expected = all_logits(runner, np.array(prompt))[-1]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_readers_of_the_same_columns_share_one_gather_and_one_matrix(tmp_path: Path) -> None:
    base = write_base(tmp_path, num_hidden_layers=1)
    columns = closing(48, 0, 5, 9)
    converted(base, {f"{module}.columns": columns for module in (QUERY, KEY, VALUE)})
    found = operators(tmp_path)
    assert found.count("FusedMatMul") == 5
    assert found.count("GatherElements") == 1
    assert "Concat" in found  # of the index's shape
    assert found.count("Concat") == 1
    check_against_masked_dense(tmp_path)


def test_readers_of_different_columns_have_a_matrix_each(tmp_path: Path) -> None:
    base = write_base(tmp_path, num_hidden_layers=1)
    values = {f"{QUERY}.columns": closing(48, 1), f"{VALUE}.columns": closing(48, 2, 3)}
    converted(base, values)
    found = operators(tmp_path)
    assert found.count("FusedMatMul") == 7
    assert found.count("GatherElements") == 2
    check_against_masked_dense(tmp_path)


def test_neighbours_that_read_everything_share_a_matrix(tmp_path: Path) -> None:
    base = write_base(tmp_path, num_hidden_layers=1)
    converted(base, {f"{VALUE}.columns": closing(48, 2, 3)})
    assert operators(tmp_path).count("FusedMatMul") == 6
    check_against_masked_dense(tmp_path)


def test_scattered_rows_and_padded_heads_are_one_gather(tmp_path: Path) -> None:
    base = write_base(tmp_path, num_hidden_layers=1)
    # Of a key dimension all queries stay, so its row is zero without being dead in the heads.
    converted(base, {f"{QUERY}.rows": closing(48, 0, 13), f"{KEY}.rows": closing(24, 7)})
    found = operators(tmp_path)
    assert found.count("GatherElements") == 1 and found.count("FusedMatMul") == 5
    check_against_masked_dense(tmp_path)


@pytest.mark.parametrize("module", [OUTPUT, DOWN])
def test_rows_are_scattered_into_the_residual_stream(tmp_path: Path, module: str) -> None:
    base = write_base(tmp_path, num_hidden_layers=1)
    converted(base, {f"{module}.rows": closing(48, 0, 1, 47)})
    assert operators(tmp_path).count("GatherElements") == 1
    check_against_masked_dense(tmp_path)


def test_biases_are_added_after_the_scatter(tmp_path: Path) -> None:
    base = write_base(tmp_path, ZOO["llama"][1])
    generator = np.random.default_rng(0)
    # Zero rows whose biases are not: their outputs are constants.
    weights = {}
    for module in (KEY, GATE, UP, OUTPUT, DOWN):
        weight = base.read(f"{module}.weight").copy()
        weight[generator.permutation(len(weight))[:4]] = 0
        weights[f"{module}.weight"] = weight
    tensors = {name: base.read(name) for name in base.tensors} | weights
    save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})
    base = Checkpoint.open(base.folder)
    plan = convert(
        ConvertOptions(str(base.folder), tmp_path / "out", to=("hf", "onnx"), index_price=0)
    )
    lowered = Checkpoint.open(tmp_path / "out").spec.lowered
    assert {name for name in lowered if name.startswith("model.layers.0")} == {
        KEY, GATE, UP, OUTPUT, DOWN
    }  # fmt: skip
    check_against_masked_dense(tmp_path)
    check_residuals(tmp_path, plan)


def test_extra_biases_of_some_linears(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    generator = np.random.default_rng(0)
    sizes = {KEY: 24, OUTPUT: 48, UP: 30, DOWN: 48}
    deltas = {f"{m}.bias": generator.normal(0, 0.1, n).astype(np.float32) for m, n in sizes.items()}
    converted(base, row_col_gates(base, 0.25), **deltas)
    assert set(sizes) <= Checkpoint.open(tmp_path / "out").spec.extra_biases
    check_against_masked_dense(tmp_path)


def test_residual_dimensions_that_nothing_writes_are_gone(tmp_path: Path) -> None:
    # An epsilon that shows: it is scaled too.
    base = write_base(tmp_path, rms_norm_eps=0.3)
    dead = [0, 3, 17, 40, 47]
    tensors = {name: base.read(name).copy() for name in base.tensors}
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, dead] = 0
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[dead] = 0
    save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})
    plan = convert(ConvertOptions(str(base.folder), tmp_path / "out", to=("hf", "onnx")))
    spec = Checkpoint.open(tmp_path / "out").spec
    assert (spec.hidden_size, spec.norm_size) == (43, 48)
    check_against_masked_dense(tmp_path)
    check_residuals(tmp_path, plan)


@pytest.mark.parametrize("tied", [False, True])
def test_bias_of_the_head(tmp_path: Path, tied: bool) -> None:
    base = write_base(tmp_path, tie_word_embeddings=tied)
    converted(base, row_col_gates(base, 0.25))
    out, file = tmp_path / "out", tmp_path / "out" / "model.safetensors"
    bias = np.random.default_rng(0).normal(0, 1, VOCABULARY).astype(np.float32)
    save_file(load_file(file) | {"lm_head.bias": bias}, file, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["sgate"]["extra_biases"] = [*config["sgate"].get("extra_biases", ()), "lm_head"]
    (out / "config.json").write_text(json.dumps(config))
    write_onnx(Checkpoint.open(out), tmp_path / "biased")
    tokens = random_tokens(12, vocab_size=VOCABULARY)
    found = all_logits(load_runner(tmp_path / "biased", OPTIONS), tokens)
    plain = all_logits(load_runner(out / "onnx", OPTIONS), tokens)
    np.testing.assert_allclose(found, plain + bias, atol=1e-5)


def test_inverse_index_takes_the_zero_behind_the_stored_rows() -> None:
    index = inverse_index(np.array([0, 3, 4]), 6)
    np.testing.assert_array_equal(index, [0, 3, 3, 1, 2, 3])
