"""Every family: converted equals masked dense, in transformers, with a cache, and in ONNX."""

import json
from collections.abc import Mapping
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
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import CAUSAL_LM, HIDDEN, VOCAB
from sgate_serve.architecture.llama_families import LLAMA
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import EngineError
from sgate_serve.gates.keys import linear_sites
from sgate_serve.models import AUTO_CLASSES
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.families.small_models import small_model
from tests.families.zoo import ON_ENGINES, VARIANTS, ZOO, Variant, build, token_batch

DECODERS = [variant for variant in VARIANTS if variant.task == CAUSAL_LM]
# A graph of longrope ends at the original length, which is 6 here.
ON_ONNX = [variant for variant in ON_ENGINES if variant.name != "longrope"]
# The layer without attention is the first, the other one for the first variant of a family as well.
FIRST_OF_FAMILY = [variants[0] for variants in ZOO.values()]


def with_skips(variants: list[Variant]) -> list[Any]:
    """Return pairs of a variant and the layer that loses its attention."""
    both = [(variant, 1) for variant in variants if variant in FIRST_OF_FAMILY]
    pairs = [(variant, 0) for variant in variants] + both
    return [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in pairs]


def converted(variant: Variant, root: Path, skip: int, **options: Any) -> dict[str, Path]:
    """Convert a small model with random gates of both kinds, and layer `skip` without attention."""
    build(variant, seed=skip).save_pretrained(root / "base")
    base = Checkpoint.open(root / "base")
    family = base.spec.family
    generator = np.random.default_rng(skip)
    values = random_gates(base, seed=skip, closed=0.3)
    for site in linear_sites(base.spec):
        values[site.key] = generator.random(site.num_gates) > 0.15
    values[f"{family.layer_name(skip)}.kv_groups"] = np.zeros(base.spec.layers[skip].num_kv_heads)
    write_gates(base, root / "gates", **values)
    convert(ConvertOptions(str(root / "base"), root / "out", root / "gates", **options))
    return {name: root / name for name in ("base", "gates", "out")}


def check_verified(at: Mapping[str, Path], engine: str) -> None:
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at.get("gates"), engine))
    assert result.passed, result.difference
    assert result.tensors_equal


def test_every_family_has_a_case() -> None:
    assert {variant.family for variant in VARIANTS} == set(FAMILIES)


@pytest.mark.parametrize(("variant", "skip"), with_skips(VARIANTS))
def test_every_family_loads_by_its_auto_class_and_verifies(
    variant: Variant, skip: int, tmp_path: Path
) -> None:
    at = converted(variant, tmp_path, skip, index_price=0)
    check_verified(at, "torch")
    out = Checkpoint.open(at["out"])
    assert out.spec.lowered
    auto = AUTO_CLASSES[out.spec.task]
    model = auto.from_pretrained(at["out"], dtype=torch.float32)
    assert type(model) is sgate_serve.models.MODELS[variant.family][variant.task]
    stack = AutoModel.from_pretrained(at["out"], dtype=torch.float32)
    tokens = token_batch(variant, 0)
    with torch.no_grad():
        found = stack(tokens).last_hidden_state
        expected = model.base_model(tokens).last_hidden_state
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("variant", "skip"), with_skips(DECODERS))
def test_cached_generation_equals_uncached(variant: Variant, skip: int, tmp_path: Path) -> None:
    at = converted(variant, tmp_path, skip, index_price=0)
    pruned = AutoModelForCausalLM.from_pretrained(at["out"], dtype=torch.float32)
    # Longer than every window, so that a wrong mask or cache becomes visible.
    prompts = token_batch(variant, 0)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(prompts)
    cached = pruned.generate(prompts, **settings)
    assert torch.equal(cached, pruned.generate(prompts, use_cache=False, **settings))
    # A caller need not state positions.
    past, parts = None, list[torch.Tensor]()
    with torch.no_grad():
        for chunk in torch.split(prompts, 7, dim=1):
            output = pruned(chunk, past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
        expected = pruned(prompts).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "skip"), with_skips(ON_ONNX))
def test_onnx_verifies_too(variant: Variant, skip: int, tmp_path: Path) -> None:
    at = converted(variant, tmp_path, skip, index_price=0)
    check_verified(at, "onnx")
    assert Checkpoint.open(at["out"]).spec.lowered


def test_onnx_with_longrope_verifies_up_to_the_original_length(tmp_path: Path) -> None:
    (variant,) = (variant for variant in DECODERS if variant.name == "longrope")
    at = converted(variant, tmp_path, skip=0, index_price=0)
    options = VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], "onnx", prompt_tokens=6)
    result = verify(options)
    assert result.passed and result.tensors_equal, result.difference
    with pytest.raises(EngineError, match="--prompt-tokens 7 exceeds the 6 positions"):
        verify(replace(options, prompt_tokens=7))


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
    sizes["num_key_value_heads"] = 4
    spec = ModelSpec.from_config(
        sizes | {"intermediate_size": 8, "vocab_size": 9} | config, "config.json"
    )
    assert list(spec.windows) == expected


def test_a_new_family_is_one_table_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy family with different tensor names converts without any other change."""
    toy = replace(
        LLAMA,
        name="toy",
        prefix="decoder",
        layer="decoder.blocks.{}",
        outside={"decoder.embed.weight": (VOCAB, HIDDEN), "decoder.final_norm.weight": (HIDDEN,)},
        embedding="decoder.embed",
        final_norm="decoder.final_norm",
    )
    for module in ("architecture.config", "checkpoint.names"):
        monkeypatch.setattr(f"sgate_serve.{module}.FAMILIES", {**FAMILIES, "toy": toy})
    # As if transformers, which does not know the family, were not installed.
    monkeypatch.setattr("converters.second_reading.missing_packages", lambda names: names)
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
