"""The forward's constants on the spec against those that transformers' own config classes hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sgate_serve.architecture.spec import ModelSpec
from tests.families.zoo import VARIANTS, Variant, build
from tests.families.zoo_configs import DECODER, GEMMA, GEMMA4, LONGROPE, WITH_HEAD_DIM

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}
# What configs on the hub say, old and new spellings; fields of a config.json.
SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", DECODER),
    ("llama", DECODER | {"rope_theta": 5e5}),
    ("llama", DECODER | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama", DECODER | {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ("llama", DECODER | {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    (
        "llama",
        DECODER | {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
    ),
    (
        "llama",
        DECODER
        | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}},
    ),
    ("qwen2", DECODER | {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("qwen3", WITH_HEAD_DIM | {"rope_theta": 1e6, "rope_scaling": None}),
    ("phi3", DECODER | LONGROPE),
    ("phi3", DECODER | {key: LONGROPE[key] for key in ("partial_rotary_factor", "rope_scaling")}),
    ("phi3", DECODER | {"partial_rotary_factor": 0.75, "rope_theta": 2e4}),
    ("gemma2", GEMMA),
    ("gemma3_text", GEMMA),
    ("gemma3_text", GEMMA | {"rope_theta": 500.0, "rope_local_base_freq": 20.0}),
    ("gemma3_text", GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("gemma3_text", GEMMA | {"rope_parameters": NESTED}),
    ("gemma3_text", GEMMA | {"rope_parameters": {"full_attention": NESTED["full_attention"]}}),
    ("gemma3_text", GEMMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    ("gemma4_text", GEMMA4),
    ("gemma4_text", GEMMA4 | {"rope_parameters": NESTED, "rope_theta": 5.0}),
    (
        "gemma3_text",
        GEMMA | {"rope_parameters": NESTED, "rope_scaling": {"factor": 2.0}},
    ),
]


ROTATED = [True] * 99


def settings_of_transformers(config: PreTrainedConfig, index: int) -> dict[str, Any]:
    """Return a layer's settings as its class reads them: by type of layer where they are nested."""
    settings, types = dict(config.rope_parameters), getattr(config, "layer_types", None)
    own = dict(settings[types[index]]) if types and types[index] in settings else settings
    # The old name of rope_type stays in the object beside the new one.
    return {key: value for key, value in own.items() if key != "type"}


def check_ropes(spec: ModelSpec, config: PreTrainedConfig) -> None:
    assert len(spec.ropes) == len(spec.layers)
    for index, rope in enumerate(spec.ropes):
        attends = not spec.layers[index].is_recurrent
        assert (rope is not None) == (attends and getattr(config, "no_rope_layers", ROTATED)[index])
        if rope is None:
            continue
        derived = {"factor"} if rope.rope_type == "longrope" else set()
        expected = settings_of_transformers(config, index)
        own = {k: v for k, v in rope.settings.items() if k not in derived - expected.keys()}
        # Without a factor, a whole head rotates.
        assert own.pop("partial_rotary_factor", 1.0) == expected.pop("partial_rotary_factor", 1.0)
        assert own == expected


@pytest.mark.parametrize(("family", "fields"), SPELLINGS)
def test_every_spelling_of_rope_is_read_as_transformers_does(
    family: str, fields: dict[str, Any]
) -> None:
    stored = {"model_type": family} | json.loads(json.dumps(fields))
    spec = ModelSpec.from_config(stored, "config.json")
    config = CONFIG_MAPPING[family].from_dict(json.loads(json.dumps(stored)))
    check_ropes(spec, config)
    # Engines that get the object instead of the file read the same.
    assert ModelSpec.from_config(config.to_dict(), "config").ropes == spec.ropes


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_constants_are_those_of_the_model_that_transformers_builds(
    tmp_path: Path, variant: Variant
) -> None:
    model = build(variant, seed=0)
    model.config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    spec = ModelSpec.from_config(stored, "config.json")
    assert spec == ModelSpec.from_config(model.config.to_dict(), "config")
    if spec.family.is_rotary:
        check_ropes(spec, model.config)
    else:
        assert spec.ropes == (None,) * len(spec.layers)
    assert spec.attention_softcap == getattr(model.config, "attn_logit_softcapping", None)
    assert spec.logit_softcap == getattr(model.config, "final_logit_softcapping", None)
    embedding = model.get_input_embeddings()
    multiplier = getattr(model.config, "embedding_multiplier", None)
    assert spec.embedding_scale == getattr(embedding, "scalar_embed_scale", multiplier)
    scales = [module.scaling for module in model.modules() if hasattr(module, "scaling")]
    if scales:
        attending = [index for index, layer in enumerate(spec.layers) if not layer.is_recurrent]
        own = [spec.attention_scales[index] for index in attending]
        assert own == pytest.approx(scales, rel=1e-12)
