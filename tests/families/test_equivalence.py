"""Every family: masked dense equals converted, in transformers, with a cache, and in ONNX."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModel, AutoModelForCausalLM

import sgate_serve.models
from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.errors import EngineError
from sgate_serve.families import FAMILIES, LLAMA
from sgate_serve.family import Family
from sgate_serve.spec import ModelSpec
from sgate_serve.verify.certificate import VerifyOptions
from sgate_serve.verify.run import verify
from tests.converters.test_convert import random_gates, write_gates
from tests.families.small_models import VARIANTS, small_model
from tests.small_llama import random_tokens

CASES = [(FAMILIES[name], sizes) for name, variants in VARIANTS.items() for sizes in variants]
IDS = [f"{family.name}-{number % 2}" for number, (family, _) in enumerate(CASES)]
ONNX_CASES = [case for case in CASES if not case[0].head_norms]


def converted(family: Family, sizes: dict[str, Any], root: Path, skip: int) -> dict[str, Path]:
    """Convert a small model with random gates that close all attention of layer `skip`."""
    model = small_model(family, **sizes)
    model.save_pretrained(root / "base")
    base = Checkpoint.open(root / "base")
    values = random_gates(base, seed=skip, closed=0.3)
    values[f"model.layers.{skip}.kv_groups"] = np.zeros(2)
    write_gates(base, root / "gates", **values)
    convert(ConvertOptions(str(root / "base"), root / "out", root / "gates"))
    return {name: root / name for name in ("base", "gates", "out")}


def test_every_family_has_a_case() -> None:
    assert set(VARIANTS) == set(FAMILIES)


@pytest.mark.parametrize(("family", "sizes"), CASES, ids=IDS)
@pytest.mark.parametrize("skip", [0, 2])
def test_verification_holds_and_cached_generation_equals_uncached(
    family: Family, sizes: dict[str, Any], skip: int, tmp_path: Path
) -> None:
    at = converted(family, sizes, tmp_path, skip)
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "torch"))
    assert result.passed, result.difference
    pruned = AutoModelForCausalLM.from_pretrained(at["out"], dtype=torch.float32)
    assert type(pruned) is sgate_serve.models.CAUSAL_LMS[family.name]
    # Longer than every window, so that a wrong mask or cache shows.
    prompts = torch.from_numpy(random_tokens(24).reshape(2, 12))
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(prompts)
    cached = pruned.generate(prompts, **settings)
    assert torch.equal(cached, pruned.generate(prompts, use_cache=False, **settings))
    stack = AutoModel.from_pretrained(at["out"], dtype=torch.float32)
    with torch.no_grad():
        hidden = stack(prompts).last_hidden_state
        expected = pruned.base_model(prompts).last_hidden_state
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize(
    ("family", "sizes"), ONNX_CASES, ids=lambda case: getattr(case, "name", None)
)
def test_onnx_holds_too(family: Family, sizes: dict[str, Any], tmp_path: Path) -> None:
    at = converted(family, sizes, tmp_path, skip=0)
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "onnx"))
    assert result.passed, result.difference


def test_onnx_refuses_query_and_key_norms_by_name(tmp_path: Path) -> None:
    at = converted(FAMILIES["qwen3"], {}, tmp_path, skip=0)
    with pytest.raises(EngineError, match=r"no norms of query and key yet, which family qwen3"):
        verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "onnx"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama", "sliding_window": 8}, [None] * 3),
        ({"model_type": "mistral"}, [4096] * 3),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 3),
        ({"model_type": "qwen2", "sliding_window": 8}, [None] * 3),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}
            | {"max_window_layers": 2},
            [None, None, 8],
        ),
        (
            {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True}
            | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            [8, None, 8],
        ),
    ],
)
def test_sliding_windows_are_read_as_transformers_reads_them(
    config: dict[str, Any], expected: list[int | None]
) -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}
    spec = ModelSpec.from_config(
        sizes | {"intermediate_size": 8, "vocab_size": 9} | config, "config.json"
    )
    assert list(spec.windows) == expected


def test_a_new_family_is_one_table_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy family with tensors of other names converts without any other change."""
    toy = replace(
        LLAMA,
        name="toy",
        layer="decoder.blocks.{}",
        embedding="decoder.embed",
        final_norm="decoder.final_norm",
    )
    monkeypatch.setattr("sgate_serve.spec.FAMILIES", {**FAMILIES, "toy": toy})
    model = small_model(LLAMA)
    renames = {
        "model.layers.": "decoder.blocks.",
        "model.embed_tokens": "decoder.embed",
        "model.norm": "decoder.final_norm",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        for old, new in renames.items():
            name = name.replace(old, new)
        weights[name] = tensor.numpy()
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    config = model.config.to_dict() | {"model_type": "toy"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config, default=str))
    base = Checkpoint.open(tmp_path / "base")
    gates = {"decoder.blocks.1.mlp_units": np.arange(30) < 10}
    write_gates(base, tmp_path / "gates", **gates)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", tmp_path / "gates"))
    out = Checkpoint.open(tmp_path / "out")
    assert [layer.mlp_units for layer in out.spec.layers] == [30, 10, 30]
    name = "decoder.blocks.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(out.read(name), base.read(name)[:10])
