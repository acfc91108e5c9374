"""GPT-OSS: sinks, units that add 1 to up, experts with biases, and files that stack experts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.family import DOWN, GATE, OUTPUT, QUERY, UP, VALUE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, PlanError
from sgate_serve.loaders.torch_model import TorchModel, dense_model
from sgate_serve.plan import Plan, Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.exactness import Example, check, write_base
from tests.converters.test_convert import write_gates
from tests.converters.test_mixtures import WEIGHTS, closed
from tests.converters.zeroing import Weights
from tests.families.float64 import logits64
from tests.families.zoo import ZOO, Variant, build, token_batch
from tests.families.zoo_configs import CLAMPED

VARIANT = Variant("gpt_oss", "clamped", "causal-lm", {**ZOO["gpt_oss"][0].config, **CLAMPED})
UNITS, EXPERTS = 32, 5
LAYER = "model.layers.0"
Change = Callable[[Weights], None]


def zeroed(role: str, span: slice, *, bias: bool = True) -> Change:
    """Zero rows of a role in the first layer, and their biases."""

    def change(weights: Weights) -> None:
        weights.matrix(0, role)[span] = 0
        values = weights.bias(0, role)
        assert values is not None
        values[span] = 0 if bias else values[span]

    return change


def exact(change: Change, root: Path) -> Plan:
    """Convert a changed model; its outputs must be those of transformers."""
    return check(Example(VARIANT, change=change), root)


def difference(change: Change, root: Path, **gates: Any) -> float:
    """Return by how much gates change what transformers makes of a changed model."""
    write_base(Example(VARIANT, change=change), root / "base")
    write_gates(Checkpoint.open(root / "base"), root / "gates", **gates)
    ids = token_batch(VARIANT, 0)
    one, other = (
        logits64(dense_model(open_masked(root / "base", mask), torch.float64), ids)
        for mask in (None, root / "gates")
    )
    return float(np.abs(one - other).max())


def test_a_unit_without_a_gate_is_dead_and_one_without_up_is_not(tmp_path: Path) -> None:
    first = slice(0, 4)
    plan = exact(zeroed(GATE, first), tmp_path / "gate")
    assert plan.layers[0].shape.experts == (UNITS - 4, *[UNITS] * 4)
    plan = exact(zeroed(UP, first), tmp_path / "up")
    assert plan.layers[0].shape.experts == (UNITS,) * EXPERTS
    key, is_open = f"{LAYER}.mlp.experts.0.mlp_units", np.arange(UNITS) >= 4
    assert difference(zeroed(GATE, first), tmp_path / "one", **{key: is_open}) < 1e-9
    assert difference(zeroed(UP, first), tmp_path / "other", **{key: is_open}) > 1e-2


def test_a_constant_unit_stays(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for role in (GATE, UP):
            zeroed(role, slice(0, 4), bias=False)(weights)

    plan = exact(change, tmp_path)
    assert plan.layers[0].shape.experts == (UNITS,) * EXPERTS and not plan.folds


def test_an_expert_without_units_keeps_one_for_the_bias_of_its_output(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, DOWN)[:, UNITS : 2 * UNITS] = 0

    plan = exact(change, tmp_path / "biased")
    assert plan.layers[0].shape.experts == (UNITS, 1, UNITS, UNITS, UNITS)

    def silent(weights: Weights) -> None:
        change(weights)
        bias = weights.bias(0, DOWN)
        assert bias is not None
        bias[:] = 0

    plan = exact(silent, tmp_path / "silent")
    assert plan.layers[0].shape.experts == (UNITS, 0, UNITS, UNITS, UNITS)


def test_experts_that_write_only_biases_are_no_constant(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, DOWN)[:] = 0

    plan = exact(change, tmp_path / "biased")
    assert plan.layers[0].shape.experts == (1,) * EXPERTS and not plan.folds

    def silent(weights: Weights) -> None:
        change(weights)
        bias = weights.bias(0, DOWN)
        assert bias is not None
        bias[:] = 0

    # The stock block returns a pair, which two texts in a batch would hide.
    assert exact(silent, tmp_path / "silent").layers[0].skipped_blocks == ("mlp",)


def test_no_constant_moves_past_experts_that_write_only_biases(tmp_path: Path) -> None:
    """Their router reads the stream."""

    def change(weights: Weights) -> None:
        weights.matrix(0, DOWN)[:] = 0
        weights.matrix(1, OUTPUT)[:] = 0

    plan = exact(change, tmp_path)
    assert not plan.folds and plan.layers[1].heads == (0, 1)


def test_a_constant_value_stays_next_to_a_sink(tmp_path: Path) -> None:
    """Weights of attention do not sum to 1, so that its share differs by token."""
    change = zeroed(VALUE, slice(0, 16), bias=False)
    plan = exact(change, tmp_path / "plan")
    assert plan.layers[0].value_dims == tuple(range(32)) and not plan.folds
    plan = exact(zeroed(VALUE, slice(0, 16)), tmp_path / "silent")
    assert plan.layers[0].kv_heads == (1,)


def test_heads_that_average_under_different_sinks_do_not_merge(tmp_path: Path) -> None:
    plan = exact(zeroed(QUERY, slice(0, 32)), tmp_path)
    assert not plan.merges and plan.layers[0].heads == (0, 1, 2, 3)


def test_sinks_go_with_their_heads(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, :32] = 0

    exact(change, tmp_path / "exact")
    write_base(Example(VARIANT, change=change), tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    old, new = (
        Checkpoint.open(tmp_path / n).read(f"{LAYER}.self_attn.sinks") for n in ("base", "out")
    )
    np.testing.assert_array_equal(new, old[2:])


def test_a_stock_result_has_stacks_and_is_pruned_again(tmp_path: Path) -> None:
    """As REAP writes it: with fewer experts, which the config counts."""
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    gates = {f"model.layers.{layer}.experts": closed(layer) for layer in range(3)}
    write_gates(Checkpoint.open(tmp_path / "base"), tmp_path / "gates", **gates)
    out = tmp_path / "out"
    convert(ConvertOptions(str(tmp_path / "base"), out, tmp_path / "gates"))
    config, stored = json.loads((out / "config.json").read_text()), load_file(out / WEIGHTS)
    assert config["model_type"] == "gpt_oss" and config["num_local_experts"] == 4
    assert stored[f"{LAYER}.mlp.experts.gate_up_proj"].shape == (4, 48, 2 * UNITS)
    assert stored[f"{LAYER}.mlp.experts.down_proj_bias"].shape == (4, 48)
    ids = token_batch(VARIANT, 0)
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, experts_implementation="eager"
        )
        found = stock(ids).logits[0].numpy()
    masked = TorchModel.masked_dense(open_masked(tmp_path / "base", tmp_path / "gates"))
    np.testing.assert_allclose(found, masked.logits(ids[0].numpy()), rtol=0, atol=1e-4)
    assert main(["inspect", str(out)]) == 0
    again = Checkpoint.open(out)
    write_gates(again, tmp_path / "more", **{f"{LAYER}.experts": np.array([1, 0, 1, 1])})
    convert(ConvertOptions(str(out), tmp_path / "twice", tmp_path / "more"))
    result = verify(VerifyOptions(str(out), str(tmp_path / "twice"), tmp_path / "more", "torch"))
    assert result.passed, result.difference


def test_a_stack_with_another_value_does_not_verify(tmp_path: Path) -> None:
    base, out = str(tmp_path / "base"), tmp_path / "out"
    build(VARIANT, seed=0).save_pretrained(base)
    convert(ConvertOptions(base, out, target=Target(uniform=True)))
    assert verify(VerifyOptions(base, str(out), None, "torch", num_prompts=1)).passed
    stored = load_file(out / WEIGHTS)
    stored[f"{LAYER}.mlp.experts.gate_up_proj"][3, 5, 9] += 1
    save_file(stored, out / WEIGHTS, {"format": "pt"})
    result = verify(VerifyOptions(base, str(out), None, "torch", num_prompts=1))
    assert "experts.3.up_proj.weight" in str(result.difference)


def one_by_one(tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.mlp.experts.0.up_proj.weight"] = np.zeros((UNITS, 48), np.float32)


def odd(tensors: dict[str, Any]) -> None:
    name = f"{LAYER}.mlp.experts.gate_up_proj_bias"
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])


def flat(tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.mlp.experts.down_proj"] = np.zeros((5, 48), np.float32)


def blocks(tensors: dict[str, Any]) -> None:
    del tensors[f"{LAYER}.mlp.experts.down_proj"]
    tensors[f"{LAYER}.mlp.experts.down_proj_blocks"] = np.zeros((5, 48, 1, 16), np.uint8)


def same(tensors: dict[str, Any]) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (one_by_one, {}, "experts.0.up_proj.weight is of one expert, and transformers' class"),
        (
            odd,
            {},
            "has shape [5, 63], expected [experts, out], out being gate and up by turns; save the",
        ),
        (flat, {}, "experts.down_proj has shape [5, 48], expected [experts, in, out]; save the"),
        (
            blocks,
            {},
            "down_proj_blocks belongs to quantized weights; give the unquantized checkpoi",
        ),
        (same, {"num_experts_per_tok": 6}, "num_experts_per_tok 6 of 5 experts"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    change: Callable[[dict[str, Any]], None], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(tmp_path)


def test_a_value_that_is_no_number_is_named_by_its_stack(tmp_path: Path) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    tensors[f"{LAYER}.mlp.experts.gate_up_proj"][1, 0, 3] = np.nan
    save_file(tensors, tmp_path / "base" / WEIGHTS, {"format": "pt"})
    stack = rf"{LAYER}.mlp.experts.gate_up_proj"
    with pytest.raises(CheckpointError, match=rf"1.up_proj.weight \(in {stack}\) holds NaN or inf"):
        convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))


def test_int8_folders_are_refused(tmp_path: Path) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    options = ConvertOptions(str(tmp_path / "base"), tmp_path / "out", precision="int8")
    with pytest.raises(PlanError, match="family gpt_oss has all experts of a layer in one tensor"):
        convert(options)
