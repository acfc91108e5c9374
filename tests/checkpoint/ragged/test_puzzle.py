"""gpt-oss as NVIDIA's Puzzle leaves it: layers with experts and windows of their own."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

import sgate_serve.models  # noqa: F401  # registers model_type "sgate"
from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.outline.outline import Outline
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, PlanError
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.checkpoint.ragged.puzzle_folder import EXPERTS, TOKENS, WINDOWS, Fields, stock_model
from tests.converters.test_convert import write_gates
from tests.families.mxfp4_folders import WEIGHTS


def logits(model: Any, ids: torch.Tensor) -> Any:
    """Return what transformers' layers make of tokens with its own mask for each window."""
    masks: dict[str, Any] = {}
    for window in dict.fromkeys(WINDOWS):
        config = deepcopy(model.config)
        config.sliding_window = window
        make = create_causal_mask if window is None else create_sliding_window_causal_mask
        embeds = model.get_input_embeddings()(ids)
        masks[str(window)] = make(config, embeds, attention_mask=None, past_key_values=None)
    model.config.layer_types = [str(window) for window in WINDOWS]
    with torch.no_grad():
        return model(ids, attention_mask=masks, use_cache=False).logits[0].numpy()


@pytest.fixture(scope="module")
def puzzle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return such a folder, and what transformers makes of TOKENS by its weights."""
    folder = tmp_path_factory.mktemp("puzzle") / "base"
    model = stock_model(folder)
    return folder, logits(model, torch.from_numpy(TOKENS)[None])


def test_it_computes_what_transformers_layers_do(puzzle: tuple[Path, Any]) -> None:
    folder, expected = puzzle
    base = Checkpoint.open(folder)
    assert base.spec.windows == tuple(WINDOWS)
    assert tuple(len(layer.experts) for layer in base.spec.layers) == EXPERTS
    assert base.layout is not None and "gpt_oss_puzzle" in base.layout
    found = TorchModel.masked_dense(open_masked(folder, None)).logits(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def at_once(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


def one_by_one(folder: Path) -> Any:
    """Return logits that the cache has a part in, past every window."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    past, steps = None, []
    with torch.no_grad():
        for token in torch.from_numpy(TOKENS)[:, None, None]:
            step = model(token, past_key_values=past, use_cache=True)
            past = step.past_key_values
            steps.append(step.logits[0, 0].numpy())
    return np.stack(steps)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_it_converts_and_verifies(engine: str, puzzle: tuple[Path, Any], tmp_path: Path) -> None:
    folder, expected = puzzle
    out = tmp_path / "out"
    convert(ConvertOptions(str(folder), out))
    config = json.loads((out / "config.json").read_text())
    assert config["sgate"]["windows"] == {"0": 3, "3": 3} and config["sliding_window"] == 7
    assert not {"block_configs", "auto_map", "quantization_config"} & config.keys()
    result = verify(VerifyOptions(str(folder), str(out), None, engine))
    assert result.passed, result.difference
    for found in (at_once(out), one_by_one(out)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_it_is_pruned(puzzle: tuple[Path, Any], tmp_path: Path) -> None:
    """Also all layers with the narrower window, whose place in the cache another one takes."""
    base, gates, out = Checkpoint.open(puzzle[0]), tmp_path / "gates", tmp_path / "out"
    closed = {
        "model.layers.0.heads": np.zeros(4),
        "model.layers.3.heads": np.zeros(4),
        "model.layers.4.kv_groups": np.array([1, 0]),
        "model.layers.1.experts": np.array([1, 0, 1, 1]),
    }
    write_gates(base, gates, **closed)
    convert(ConvertOptions(str(base.folder), out, gates))
    result = verify(VerifyOptions(str(base.folder), str(out), gates, "torch"))
    assert result.passed, result.difference
    assert [layer.num_heads for layer in Checkpoint.open(out).spec.layers] == [0, 4, 4, 0, 2, 4]
    np.testing.assert_allclose(one_by_one(out), at_once(out), rtol=0, atol=1e-4)
    with pytest.raises(PlanError, match="--uniform: there are windows of 3 and 7 tokens, and a st"):
        convert(ConvertOptions(str(base.folder), tmp_path / "u", target=Target(uniform=True)))


def test_caches_of_a_fixed_size_are_refused(puzzle: tuple[Path, Any], tmp_path: Path) -> None:
    """Their last key is not that of the last token."""
    convert(ConvertOptions(str(puzzle[0]), tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.from_numpy(TOKENS)[None]
    with pytest.raises(CheckpointError, match="windows of several sizes need eager attention and"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


def test_headers_agree_with_the_blocks(puzzle: tuple[Path, Any], tmp_path: Path) -> None:
    assert Outline.of(puzzle[0]).faults == ()

    def change(fields: Fields) -> None:
        block(fields, 2)["num_local_experts"] = 4

    wrong = changed(puzzle[0], tmp_path, change)
    fault = "model.layers.2.mlp: it has 3 experts, but block_configs says 4"
    assert Outline.of(wrong).faults == (fault,)


def block(fields: Fields, index: int) -> Fields:
    found: Fields = fields["block_configs"][index]
    return found


def changed(folder: Path, target: Path, change: Callable[[Fields], Any]) -> Path:
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (target / "config.json").write_text(json.dumps(fields))
    (target / WEIGHTS).symlink_to(folder / WEIGHTS)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda fields: fields["block_configs"].pop(),
            "block_configs must have an entry for each of num_hidden_layers 6, found",
        ),
        (
            lambda fields: block(fields, 1).update(attention={"no_op": True}),
            "block_configs[1].attention is {'no_op': True}; this release reads blocks that differ",
        ),
        (
            lambda fields: block(fields, 1).pop("sliding_window"),
            "block_configs[1] lacks sliding_window; download",
        ),
        (
            lambda fields: block(fields, 1).update(num_local_experts=None),
            "block_configs[1]: num_local_experts must be",
        ),
        (
            lambda fields: block(fields, 1).update(num_local_experts=5),
            "block_configs[1] has num_local_experts 5, and the files hold 4; correct one",
        ),
        (
            lambda fields: fields.update(layer_types=["full_attention"] * 6),
            "layer_types and the windows of block_configs contradict each other",
        ),
    ],
)
def test_malformed_blocks_are_refused(
    change: Callable[[Fields], Any], message: str, puzzle: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(changed(puzzle[0], tmp_path, change))


def test_rotary_settings_may_be_set_aside(puzzle: tuple[Path, Any], tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}

    def change(fields: Fields) -> None:
        fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
        fields["yarn_rope_scaling"] = yarn

    spec = Checkpoint.open(changed(puzzle[0], tmp_path, change)).spec
    assert {rope.settings["factor"] for rope in spec.ropes if rope is not None} == {8.0}


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"1": 9}, "sgate.windows gives layer 1 9 tokens, and the other fields 7; convert"),
        ({"2": 3}, "sgate.windows gives layer 2 3 tokens, and the other fields no window; con"),
        ({"6": 3}, "sgate.windows names layer 6 of 6; convert"),
    ],
)
def test_windows_of_our_own_folders_are_checked(
    windows: dict[str, int], message: str, puzzle: tuple[Path, Any], tmp_path: Path
) -> None:
    config = deepcopy(dict(Checkpoint.open(puzzle[0]).config))
    config["sgate"]["windows"] = windows
    with pytest.raises(CheckpointError, match=re.escape(message)):
        ModelSpec.from_config(config, "config.json")
