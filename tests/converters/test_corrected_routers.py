"""Routers that correct their scores for the choice alone: folders of other tools, refusals."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from converters.convert import ConvertOptions, convert, make_plan, open_masked
from sgate_serve.architecture.family import DOWN
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, PlanError
from sgate_serve.gates.keys import coupled_sites
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import write_gates
from tests.families.zoo import ZOO, build, token_batch

VARIANT, WIDE = ZOO["glm4_moe"]
WEIGHTS = "model.safetensors"
LAYERS, KEPT = (1, 2), (0, 2, 4)
BLOCK = "model.layers.{}.mlp"
CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"


def write_base(folder: Path, **fields: Any) -> Checkpoint:
    build(VARIANT, seed=0, **fields).save_pretrained(folder)
    return Checkpoint.open(folder)


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def pruned_by_reap(base: Path, folder: Path) -> None:
    """Write a stock folder with three experts in each layer, as REAP does."""
    tensors = load_file(base / WEIGHTS)
    for block in map(BLOCK.format, LAYERS):
        kept = list(KEPT)
        for name in ("weight", "e_score_correction_bias"):
            tensors[f"{block}.gate.{name}"] = tensors[f"{block}.gate.{name}"][kept]
        experts = {n: tensors.pop(n) for n in [*tensors] if n.startswith(f"{block}.experts.")}
        for name, value in experts.items():
            number, _, linear = name.removeprefix(f"{block}.experts.").partition(".")
            if int(number) in KEPT:
                tensors[f"{block}.experts.{KEPT.index(int(number))}.{linear}"] = value
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    edit(folder, n_routed_experts=len(KEPT))


def closed(base: Checkpoint, folder: Path, *experts: int) -> Path:
    """Write gates that close these experts in every mixture."""
    sites = [site for site in coupled_sites(base.spec) if site.kind == "experts"]
    gates = {site.key: ~np.isin(np.arange(site.num_gates), experts) for site in sites}
    return write_gates(base, folder, **gates)


@pytest.fixture
def reap(tmp_path: Path) -> Path:
    """A folder as REAP writes it, next to its base."""
    write_base(tmp_path / "base")
    pruned_by_reap(tmp_path / "base", tmp_path / "reap")
    return tmp_path / "reap"


def test_a_folder_with_fewer_experts_is_the_base_with_the_others_closed(reap: Path) -> None:
    base, tokens = Checkpoint.open(reap.parent / "base"), token_batch(VARIANT, 0)[0].numpy()
    masked = open_masked(base.folder, closed(base, reap.parent / "gates", 1, 3))
    expected = TorchModel.masked_dense(masked).logits(tokens)
    stock = TorchModel.by_transformers(Checkpoint.open(reap)).logits(tokens)
    np.testing.assert_allclose(stock, expected, rtol=0, atol=1e-5)
    assert Checkpoint.open(reap).layout is None
    out = reap.parent / "out"
    convert(ConvertOptions(str(reap), out, to=("hf", "onnx")))
    for engine in ("torch", "onnx"):
        result = verify(VerifyOptions(str(reap), str(out), engine=engine))
        assert result.passed, result.difference


def test_a_correction_of_closed_experts_that_was_left_behind_is_named(
    reap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(reap / WEIGHTS)
    tensors[CORRECTION] = load_file(reap.parent / "base" / WEIGHTS)[CORRECTION]
    save_file(tensors, reap / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"correction_bias has shape \[5\], .* implies \[3\]"):
        Checkpoint.open(reap)
    assert main(["inspect", str(reap)]) == 1
    shown = capsys.readouterr().out
    assert "e_score_correction_bias has 5 values for 3 experts; keep those of the kept" in shown


def test_layers_that_predict_further_tokens_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = TorchModel.converted(write_base(tmp_path / "base").folder)
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    further = {n.replace("s.2.", "s.3."): v for n, v in tensors.items() if ".layers.2." in n}
    further["model.layers.3.eh_proj.weight"] = np.ones((48, 96), np.float32)
    save_file(tensors | further, tmp_path / "base" / WEIGHTS, {"format": "pt"})
    with caplog.at_level(logging.INFO):
        base = Checkpoint.open(tmp_path / "base")
    assert "does not use model.layers.3.eh_proj.weight and" in caplog.text
    tokens = token_batch(VARIANT, 0)[0].numpy()
    for model in (TorchModel.by_transformers(base), TorchModel.converted(base.folder)):
        np.testing.assert_allclose(model.logits(tokens), expected.logits(tokens), rtol=0, atol=1e-4)
    gates = closed(base, tmp_path / "gates", 1)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    result = verify(VerifyOptions(str(base.folder), str(tmp_path / "out"), gates, "torch"))
    assert result.passed, result.difference
    assert Checkpoint.open(tmp_path / "out").config["num_nextn_predict_layers"] == 0
    edit(tmp_path / "base", num_nextn_predict_layers=0)
    with pytest.raises(CheckpointError, match=r"layers\.3\..* is not part of family glm4_moe"):
        Checkpoint.open(tmp_path / "base")


def test_a_correction_is_never_rounded(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    gates = closed(base, tmp_path / "gates", 1)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, precision="bf16"))
    out = Checkpoint.open(tmp_path / "out")
    assert out.tensors["model.layers.1.mlp.gate.weight"].dtype == "BF16"
    np.testing.assert_array_equal(out.read(CORRECTION), base.read(CORRECTION)[[0, 2, 3, 4]])
    model: Any = AutoModelForCausalLM.from_pretrained(out.folder, dtype=torch.bfloat16)
    assert model.get_buffer(CORRECTION).dtype == torch.float32
    result = verify(VerifyOptions(str(base.folder), str(out.folder), gates, "torch"))
    assert result.passed, result.difference


def test_a_lone_expert_needs_a_router_of_ours(tmp_path: Path) -> None:
    """The stock one adds up the two best scores, of which there is one."""
    base = write_base(tmp_path / "base")
    gates = closed(base, tmp_path / "gates", 0, 1, 2, 4)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    assert Checkpoint.open(tmp_path / "out").config["model_type"] == "sgate"
    with pytest.raises(PlanError, match=r"layer 1 keeps 1 expert, .* among at least 2: leave"):
        make_plan(open_masked(base.folder, gates), Target(uniform=True))
    config = {**base.config, "n_routed_experts": 1, "num_experts_per_tok": 1}
    with pytest.raises(CheckpointError, match=r"n_routed_experts is 1; .* among at least 2"):
        ModelSpec.from_config(config, "config.json")


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"0": 3}, r"sgate.shared_units names layers \[0\], not mixtures"),
        ({"1": [3]}, r"sgate.shared_units: 1 must be a whole number, found \[3\]"),
        ({"1": None}, "sgate.shared_units: layer 1 must be a whole number, found null"),
        ({"one": 3}, "sgate.shared_units holds 'one'; expected the number of a layer"),
    ],
)
def test_widths_of_shared_experts_are_checked(
    widths: dict[str, Any], message: str, tmp_path: Path
) -> None:
    block = {"version": 2, "family": "glm4_moe", "shared_units": widths}
    config = {**write_base(tmp_path).config, "model_type": "sgate", "sgate": block}
    with pytest.raises(CheckpointError, match=message):
        ModelSpec.from_config(config, "config.json")


def test_a_stock_shared_expert_is_as_wide_as_whole_others(tmp_path: Path) -> None:
    """17 of its 32 units and 11 of the others' 16 are kept: two times 11 are the least that fit."""
    build(WIDE, seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    gates = {
        f"{part.module.rpartition('.')[0]}.mlp_units": np.arange(part.units.stop - part.units.start)
        < (17 if part.expert == 5 else 11)
        for part in base.spec.parts(2, DOWN)
    }
    write_gates(base, tmp_path / "gates", **gates)
    options = ConvertOptions(str(base.folder), tmp_path / "out", tmp_path / "gates")
    assert convert(options).layers[2].shape.shared_units == 17
    shape = make_plan(open_masked(base.folder, tmp_path / "gates"), Target(uniform=True)).layers[2]
    assert (shape.shape.experts, shape.shape.shared_units) == ((11,) * 5, 22)
