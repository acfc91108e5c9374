"""Ragged folders of other tools: converted, verified and run as the hand-pruned model they hold."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.cli import main
from sgate_serve.engines.torch import TorchEngine
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.reports.inspection import Inspection
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.checkpoint.ragged.layouts import LAYOUTS, rewrite_config
from tests.small_llama import (
    UNEVEN,
    Kept,
    dense_llama,
    random_tokens,
    reference_logits,
    save_pruned,
    silence_biases,
)

TOKENS = random_tokens(24)
ALIKE = (Kept((1,), tuple(range(0, 30, 2))),) * 5


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_layout_converts_to_the_hand_pruned_model(tmp_path: Path, layout: str) -> None:
    model = dense_llama(num_hidden_layers=5)
    hand = save_pruned(model, UNEVEN, tmp_path / "ragged")
    weights = load_file(tmp_path / "ragged" / SINGLE_FILE)
    rewrite_config(tmp_path / "ragged", layout)
    convert(ConvertOptions(str(tmp_path / "ragged"), tmp_path / "out"))
    assert Checkpoint.open(tmp_path / "out").layout is None
    assert Checkpoint.open(tmp_path / "out").spec.layers == hand.spec.layers
    converted = load_file(tmp_path / "out" / SINGLE_FILE)
    assert converted.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(converted[name], weight, err_msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["model_type"] == "sgate" and config["sgate"]["base_model_type"] == "llama"
    foreign = {"auto_map", "block_configs", "layer_head_num", "layer_inter_size"}
    assert not config.keys() & foreign
    found = TorchModel.converted(tmp_path / "out").logits(TOKENS)
    np.testing.assert_allclose(found, reference_logits(model, TOKENS), atol=2e-4)
    result = verify(VerifyOptions(str(tmp_path / "ragged"), str(tmp_path / "out"), engine="torch"))
    assert result.passed and result.tensors_equal


def test_each_layout_runs_as_it_is(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    model = dense_llama(num_hidden_layers=5)
    hand = save_pruned(model, UNEVEN, tmp_path / "ragged")
    rewrite_config(tmp_path / "ragged", layout)
    with caplog.at_level(logging.INFO, "sgate_serve.checkpoint.reader"):
        opened = Checkpoint.open(tmp_path / "ragged")
    assert opened.layout == f"{LAYOUTS[layout][1]} (4 blocks are gone)"
    assert caplog.messages == [f"{tmp_path / 'ragged'}: {opened.layout}"]
    assert opened.spec == hand.spec
    ragged = str(tmp_path / "ragged")
    assert verify(VerifyOptions(ragged, ragged, engine="onnx")).passed
    engine = TorchEngine.load(tmp_path / "ragged")
    np.testing.assert_allclose(engine.logits(TOKENS), reference_logits(model, TOKENS), atol=2e-4)


def test_a_uniformly_pruned_checkpoint_becomes_a_stock_one(tmp_path: Path, layout: str) -> None:
    model = dense_llama(num_hidden_layers=5)
    save_pruned(model, ALIKE, tmp_path / "ragged")
    rewrite_config(tmp_path / "ragged", layout)
    convert(ConvertOptions(str(tmp_path / "ragged"), tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] == 2 and config["intermediate_size"] == 15
    found = TorchModel.converted(tmp_path / "out").logits(TOKENS)
    np.testing.assert_allclose(found, reference_logits(model, TOKENS), atol=2e-4)


def test_biases_that_a_tool_has_added_are_kept(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=5, attention_bias=True, mlp_bias=True)
    added = ["model.layers.1.self_attn.o_proj", "model.layers.4.mlp.down_proj"]
    spec = ModelSpec.from_config(model.config.to_dict(), "dense")
    silence_biases(model, spec, added)
    save_pruned(model, UNEVEN, tmp_path / "ragged", added)
    rewrite_config(tmp_path / "ragged", "stock")
    opened = Checkpoint.open(tmp_path / "ragged")
    assert opened.layout == (
        LAYOUTS["stock"][1] + " (4 blocks are gone, 2 biases are not the family's)"
    )
    convert(ConvertOptions(str(opened.folder), tmp_path / "out"))
    assert Checkpoint.open(tmp_path / "out").spec.extra_biases == set(added)
    found = TorchModel.converted(tmp_path / "out").logits(TOKENS)
    np.testing.assert_allclose(found, reference_logits(model, TOKENS), atol=2e-4)


def test_norms_that_a_tool_has_left_of_removed_blocks_are_dropped(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=5)
    save_pruned(model, UNEVEN, tmp_path / "ragged")
    file = tmp_path / "ragged" / SINGLE_FILE
    norms = {
        f"model.layers.2.{name}.weight": np.ones(48, np.float32)
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    save_file(load_file(file) | norms, file, metadata={"format": "pt"})
    rewrite_config(tmp_path / "ragged", "stock")
    convert(ConvertOptions(str(tmp_path / "ragged"), tmp_path / "out"))
    assert not norms.keys() & load_file(tmp_path / "out" / SINGLE_FILE).keys()
    found = TorchModel.converted(tmp_path / "out").logits(TOKENS)
    np.testing.assert_allclose(found, reference_logits(model, TOKENS), atol=2e-4)


def test_what_is_zero_in_a_ragged_checkpoint_goes_too(tmp_path: Path) -> None:
    model = dense_llama(num_hidden_layers=5)
    with torch.no_grad():
        model.model.layers[4].mlp.down_proj.weight[:, 20:] = 0
    save_pruned(model, UNEVEN, tmp_path / "ragged")
    rewrite_config(tmp_path / "ragged", "block_configs")
    convert(ConvertOptions(str(tmp_path / "ragged"), tmp_path / "out"))
    assert [layer.mlp_units for layer in Checkpoint.open(tmp_path / "out").spec.layers] == (
        [15, 7, 0, 0, 20]
    )
    ragged, out = str(tmp_path / "ragged"), str(tmp_path / "out")
    assert verify(VerifyOptions(ragged, out, engine="torch")).passed


def test_the_commands_say_what_they_have_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save_pruned(dense_llama(num_hidden_layers=5), UNEVEN, tmp_path / "ragged")
    rewrite_config(tmp_path / "ragged", "block_configs")
    ragged, words = str(tmp_path / "ragged"), f"{LAYOUTS['block_configs'][1]} (4 blocks are gone)"
    with caplog.at_level(logging.INFO):
        assert main(["convert", ragged, "--out", str(tmp_path / "out")]) == 0
    assert f"{ragged}: {words}" in caplog.messages
    assert main(["plan", ragged]) == 0
    assert next(Inspection.of(ragged).lines()) == f"{ragged}: llama family, {words}"
    capsys.readouterr()
    assert main(["inspect", ragged, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == words
