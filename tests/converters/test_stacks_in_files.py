"""Files of mixtures that stack experts as the class of transformers does, instead of each alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import write_gates
from tests.converters.test_mixtures import ONE_BY_ONE, WEIGHTS, closed, mixture_layers
from tests.families.zoo import ZOO, Variant, build, token_batch

VARIANT = ZOO["qwen3_5_moe_text"][0]
BLOCK = "model.layers.0.mlp.experts"


def write_stacked(variant: Variant, folder: Path) -> Checkpoint:
    """Write a model under the names of its class."""
    build(variant, seed=0).save_pretrained(folder, save_original_format=False)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("variant", ONE_BY_ONE[::2], ids=str)
def test_stacks_are_read_as_transformers_reads_them(variant: Variant, tmp_path: Path) -> None:
    build(variant, seed=0).save_pretrained(tmp_path / "alone")
    alone, stacked = Checkpoint.open(tmp_path / "alone"), write_stacked(variant, tmp_path / "base")
    assert stacked.is_stacked and not alone.is_stacked and stacked.spec == alone.spec
    for name in alone.tensors:
        np.testing.assert_array_equal(stacked.read(name), alone.read(name), err_msg=name)
    layer = stacked.spec.family.layer_name(mixture_layers(stacked)[0])
    write_gates(stacked, tmp_path / "gates", **{f"{layer}.experts": closed(1, 2)})
    options = ConvertOptions(str(tmp_path / "base"), tmp_path / "out", tmp_path / "gates")
    convert(options)
    # Among other things, it compares the base with what transformers loads.
    result = verify(VerifyOptions(options.checkpoint, str(options.out), options.gates, "torch"))
    assert result.passed and result.tensors_equal, result.difference


def restacked(weights: dict[str, Any], counts: list[int], *, alternates: bool) -> dict[str, Any]:
    """Return tensors of single experts as transformers stacks them."""
    found = {name: value for name, value in weights.items() if ".experts." not in name}
    for layer, count in enumerate(counts):
        block = f"model.layers.{layer}.mlp.experts"
        for kind, ending in (("weight", ""), ("bias", "_bias")):
            if f"{block}.0.down_proj.{kind}" not in weights:
                continue
            gate, up, down = (
                np.stack([weights[f"{block}.{number}.{name}.{kind}"] for number in range(count)])
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            both = np.concatenate([gate, up], axis=1)
            if alternates:
                both = np.stack([gate, up], axis=2).reshape(both.shape)
            stacks = {f"gate_up_proj{ending}": both, f"down_proj{ending}": down}
            if alternates and kind == "weight":
                stacks = {name: stack.swapaxes(1, 2) for name, stack in stacks.items()}
            found |= {f"{block}.{name}": stack.copy() for name, stack in stacks.items()}
    return found


@pytest.mark.parametrize("variant", [VARIANT, ZOO["gpt_oss"][0]], ids=str)
def test_uneven_stacks_of_other_tools_are_counted_by_the_tensors(
    variant: Variant, tmp_path: Path
) -> None:
    """As REAP may leave them: other experts in each layer, and the dense number in config.json."""
    base, out, foreign = (tmp_path / name for name in ("base", "out", "foreign"))
    stacked = write_stacked(variant, base)
    kept = {0: closed(1), 1: closed(0, 2), 2: closed(1, 2, 3, 4)}
    gates = {f"model.layers.{layer}.experts": values for layer, values in kept.items()}
    write_gates(stacked, tmp_path / "gates", **gates)
    convert(ConvertOptions(str(base), out, tmp_path / "gates"))
    foreign.mkdir()
    (foreign / "config.json").write_text((base / "config.json").read_text())
    alternates = variant.family == "gpt_oss"
    tensors = restacked(load_file(out / WEIGHTS), [4, 3, 1], alternates=alternates)
    save_file(tensors, foreign / WEIGHTS, {"format": "pt"})
    ours, theirs = Checkpoint.open(out), Checkpoint.open(foreign)
    assert theirs.spec == ours.spec and theirs.layout is not None
    assert [len(layer.experts) for layer in theirs.spec.layers] == [4, 3, 1]
    assert [layer.top_k for layer in theirs.spec.layers] == [2, 2, 1]
    tokens = token_batch(variant, 0)[0].numpy()
    one, other = (TorchModel.converted(folder).logits(tokens) for folder in (out, foreign))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    convert(ConvertOptions(str(foreign), tmp_path / "again"))
    result = verify(VerifyOptions(str(foreign), str(tmp_path / "again"), None, "torch"))
    assert result.passed, result.difference


def both(tensors: dict[str, Any]) -> None:
    tensors[f"{BLOCK}.3.up_proj.weight"] = np.zeros((16, 48), np.float32)


def odd(tensors: dict[str, Any]) -> None:
    tensors[f"{BLOCK}.gate_up_proj"] = np.zeros((5, 33, 48), np.float32)


def flat(tensors: dict[str, Any]) -> None:
    tensors[f"{BLOCK}.down_proj"] = np.zeros((5, 48), np.float32)


def fewer(tensors: dict[str, Any]) -> None:
    tensors[f"{BLOCK}.down_proj"] = tensors[f"{BLOCK}.down_proj"][:4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (both, "gate_up_proj holds all experts of its layer, and model.layers.0.mlp.experts.3.up"),
        (odd, "gate_up_proj has shape [5, 33, 48], expected [experts, out, in], out being gate"),
        (flat, "experts.down_proj has shape [5, 48], expected [experts, out, in]; save the model"),
        (fewer, "has 5 rows, one for each expert, and tensor model.layers.0.mlp.experts.4.down"),
    ],
)
def test_stacks_that_cannot_be_read_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    write_stacked(VARIANT, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(tmp_path)
