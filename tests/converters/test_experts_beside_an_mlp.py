"""Gemma 4's mixtures: experts that read the stream beside an MLP, with norms of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.family import DOWN, GATE, UP
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import coupled_sites
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Plan
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.exactness import Example, check
from tests.converters.test_convert import write_gates
from tests.converters.test_mixtures import WEIGHTS, closed
from tests.converters.zeroing import Weights
from tests.families.zoo import ZOO, build, token_batch

(VARIANT,) = (variant for variant in ZOO["gemma4_text"] if variant.has_experts)
UNITS, EXPERTS, SHARED = 16, 5, 30
LAYER = "model.layers.0"
OF_MLP, OF_EXPERTS = "pre_feedforward_layernorm", "pre_feedforward_layernorm_2"
# Residual dimensions that a norm passes nothing of, and units that read these alone.
DIMS, READING = slice(0, 6), 4


def exact(root: Path, *norms: str) -> Plan:
    """Convert a model in which units read only dimensions that some norms pass nothing of."""

    def change(weights: Weights) -> None:
        for role in (GATE, UP):
            matrix = weights.matrix(0, role)
            for first in (0, EXPERTS * UNITS):
                matrix[first : first + READING, DIMS.stop :] = 0
        for name in norms:
            weight = weights.named(f"{LAYER}.{name}.weight")
            assert weight is not None, name
            weight[DIMS] = 0

    return check(Example(VARIANT, change=change), root)


def test_a_column_is_dead_if_both_norms_pass_nothing(tmp_path: Path) -> None:
    """Experts do not read the norm of the block, and the MLP does not read theirs."""
    for number, names in enumerate(((OF_MLP,), (OF_EXPERTS,))):
        shape = exact(tmp_path / f"{number}", *names).layers[0].shape
        assert (shape.experts, shape.shared_units) == ((UNITS,) * EXPERTS, SHARED)
    shape = exact(tmp_path / "both", OF_MLP, OF_EXPERTS).layers[0].shape
    assert shape.experts == (UNITS - READING, *[UNITS] * (EXPERTS - 1))
    assert shape.shared_units == SHARED - READING


def silent(span: slice) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights.matrix(0, DOWN)[:, span] = 0

    return change


@pytest.mark.parametrize(
    ("span", "experts", "shared"),
    [
        (slice(0, EXPERTS * UNITS), (0,) * EXPERTS, SHARED),
        (slice(EXPERTS * UNITS, None), (UNITS,) * EXPERTS, 0),
        (slice(None), (), 0),
    ],
)
def test_experts_the_mlp_or_both_write_nothing(
    span: slice, experts: tuple[int, ...], shared: int, tmp_path: Path
) -> None:
    shape = check(Example(VARIANT, change=silent(span)), tmp_path).layers[0].shape
    assert (shape.experts, shape.shared_units) == (experts, shared)
    assert shape.has("mlp") == bool(experts)


def test_a_stock_result_has_stacks_and_is_pruned_again(tmp_path: Path) -> None:
    """As REAP writes it: with fewer experts, which the config counts."""
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    base, out = Checkpoint.open(tmp_path / "base"), tmp_path / "out"
    gates = {f"model.layers.{layer}.experts": closed(layer) for layer in range(3)}
    write_gates(base, tmp_path / "gates", **gates)
    convert(ConvertOptions(str(base.folder), out, tmp_path / "gates"))
    config, stored = json.loads((out / "config.json").read_text()), load_file(out / WEIGHTS)
    assert config["model_type"] == "gemma4_text" and config["num_experts"] == 4
    assert stored[f"{LAYER}.experts.gate_up_proj"].shape == (4, 2 * UNITS, 48)
    assert stored[f"{LAYER}.experts.down_proj"].shape == (4, 48, UNITS)
    scales = f"{LAYER}.router.per_expert_scale"
    np.testing.assert_array_equal(stored[scales], base.read(scales)[1:])
    ids = token_batch(VARIANT, 0)
    stock = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, experts_implementation="eager"
    )
    assert type(stock).__name__ == "Gemma4ForCausalLM"
    with torch.no_grad():
        found = stock(ids).logits[0].numpy()
    masked = TorchModel.masked_dense(open_masked(base.folder, tmp_path / "gates"))
    np.testing.assert_allclose(found, masked.logits(ids[0].numpy()), rtol=0, atol=1e-4)
    assert main(["inspect", str(out)]) == 0
    write_gates(Checkpoint.open(out), tmp_path / "more", **{f"{LAYER}.experts": [1, 0, 1, 1]})
    convert(ConvertOptions(str(out), tmp_path / "twice", tmp_path / "more"))
    result = verify(VerifyOptions(str(out), str(tmp_path / "twice"), tmp_path / "more", "torch"))
    assert result.passed, result.difference


def test_units_of_the_mlp_have_a_key_of_their_own(tmp_path: Path) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path)
    keys = {site.key: site.num_gates for site in coupled_sites(Checkpoint.open(tmp_path).spec)}
    assert keys[f"{LAYER}.experts"] == EXPERTS
    assert keys[f"{LAYER}.experts.3.mlp_units"] == UNITS
    assert keys[f"{LAYER}.mlp.mlp_units"] == SHARED


def test_files_whose_experts_do_not_fit_are_refused(tmp_path: Path) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path)
    tensors, name = load_file(tmp_path / WEIGHTS), f"{LAYER}.experts.gate_up_proj"
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    message = r"has shape \[5, 31, 48\], expected \[experts, out, in\], out being gate before up"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_a_bias_for_the_mlp_beside_experts_is_refused(tmp_path: Path) -> None:
    build(VARIANT, seed=0).save_pretrained(tmp_path / "base")
    base, name = Checkpoint.open(tmp_path / "base"), f"{LAYER}.mlp.down_proj.bias"
    values = {f"{LAYER}.experts": closed(1)}
    gates = Gates("test", "gemma4_text", "coupled", base.fingerprint, values)
    gates.write(tmp_path / "gates", {name: np.ones(48, np.float32)})
    with pytest.raises(GatesError, match=f"{name} is neither a tensor of the base nor a bias"):
        open_masked(base.folder, tmp_path / "gates")
