"""vLLM reads a stock folder as transformers does, or is kept from reading it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.vllm.reading import config_overrides
from sgate_serve.errors import EngineError
from sgate_serve.server.server_options import ServerOptions
from tests.checkpoint.ragged.puzzle_folder import stock_model
from tests.engines.drive import prompt
from tests.engines.vllm.start import vllm_engine
from tests.families.mxfp4_folders import pack_folder
from tests.families.zoo import ZOO, build
from tests.text.test_pooling import write_modules

pytestmark = pytest.mark.vllm

UNTIED = {"tie_word_embeddings": False}


@pytest.fixture
def own_head(tmp_path: Path) -> Path:
    """A folder whose config ties the head that it stores with values of its own."""
    # A width of heads that vLLM's own Llama computes on a CPU.
    build(ZOO["llama"][0], seed=0, head_dim=32).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text()) | {"tie_word_embeddings": True}
    path.write_text(json.dumps(config))
    return tmp_path / "base"


def test_a_head_of_its_own_is_not_tied(own_head: Path) -> None:
    from sgate_serve.engines.vllm.server import command_line

    tokens = np.array(prompt(12))
    reference = AutoModelForCausalLM.from_pretrained(own_head, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)[None]).logits[0].log_softmax(-1)
    with vllm_engine(own_head) as engine:
        found = torch.from_numpy(engine.logits(tokens)).log_softmax(-1)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=1e-4)
    words = command_line(own_head, ServerOptions(), ["base"], [])
    assert json.loads(words[words.index("--hf-overrides") + 1]) == UNTIED
    with pytest.raises(EngineError, match=r"would replace .*false.* need; write that into its con"):
        config_overrides(own_head, ["--hf-overrides={}"])


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.fp16.safetensors"])
def test_weights_that_transformers_does_not_load_are_refused(own_head: Path, name: str) -> None:
    weights = own_head / "model.safetensors"
    assert config_overrides(own_head, []) == UNTIED
    if name.endswith(".json"):
        shards = dict.fromkeys(load_file(weights), weights.name)
        (own_head / name).write_text(json.dumps({"weight_map": shards}))
    else:
        save_file(load_file(weights), own_head / name, metadata={"format": "pt"})
    with pytest.raises(
        EngineError, match=rf"vLLM would read .*{name}, which .* move it to another"
    ):
        config_overrides(own_head, [])


def test_default_prompt_of_an_embedding_model_is_refused(tmp_path: Path) -> None:
    build(ZOO["bert"][0], seed=0).save_pretrained(tmp_path)
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    path, prompts = tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "q: "}}
    path.write_text(json.dumps(prompts))
    assert config_overrides(tmp_path, []) == {}
    path.write_text(json.dumps({**prompts, "default_prompt_name": "query"}))
    with pytest.raises(EngineError, match="has the default prompt 'q: ', which vLLM does not put"):
        config_overrides(tmp_path, [])


def test_experts_in_4_bits_are_refused_on_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgate_serve.engines.vllm.reading.has_gpu", lambda: False)
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    build(ZOO["gpt_oss"][0], 0, **sizes).save_pretrained(tmp_path / "floats")
    packed = pack_folder(tmp_path / "floats", tmp_path / "packed")
    with pytest.raises(EngineError, match=r"packed: vLLM computes .* 4 bits on GPUs alone; give "):
        config_overrides(packed, [])


@pytest.mark.parametrize(
    "family",
    ["gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "olmo3", "qwen2", "qwen3", "smollm3"],
)
def test_a_window_that_vllm_takes_out_leaves_the_kinds_of_layers(family: str) -> None:
    from sgate_serve.engines.vllm.config import read_spec

    config = AutoConfig.for_model(family, **ZOO[family][1].config).to_dict()
    with_window = read_spec(config, "config")
    without = read_spec(config | {"sliding_window": None}, "config")
    assert any(with_window.windows)
    assert without == replace(with_window, windows=(None,) * len(with_window.layers))


def test_windows_of_several_sizes_cannot_be_taken_out(tmp_path: Path) -> None:
    from sgate_serve.engines.vllm.config import read_spec

    stock_model(tmp_path / "base")
    config = dict(Checkpoint.open(tmp_path / "base").config) | {"sliding_window": None}
    with pytest.raises(EngineError, match=r"c.json: --disable-sliding-window limits .*; leave it"):
        read_spec(config, "c.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"swiglu_limit": 5.0}, "does not follow swiglu_alpha and swiglu_limit; serve the folder"),
        (
            {"layer_types": ["full_attention"] * 3},
            "does not follow layer_types, and has a window i",
        ),
        ({"attention_bias": False}, "does not follow attention_bias false"),
        ({"rope_parameters": {"rope_type": "default"}}, "not follow such rope_parameters, and has"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}},
            "not follow such rope_parameters",
        ),
    ],
)
def test_what_a_class_of_vllm_takes_for_granted_is_named(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build(ZOO["gpt_oss"][0], 0).save_pretrained(tmp_path / "good")
    assert config_overrides(tmp_path / "good", []) == {}
    folder = tmp_path / "other"
    build(ZOO["gpt_oss"][0], 0, **fields).save_pretrained(folder)
    with pytest.raises(EngineError, match=f"vLLM's GptOssForCausalLM .*{message}"):
        config_overrides(folder, [])
