"""What is refused of models of text and images: configs, names of tensors, the whole on vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.errors import CheckpointError, EngineError
from tests.families.wholes import build_whole, saved, whole_config

CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"architectures": ["Gemma3Model"]}, {}, "architecture Gemma3Model of a gemma3 is not supp"),
    ({"text_config": None}, {}, "text_config is missing, and without it nothing says"),
    ({"text_config": 3}, {}, "text_config must be an object, found 3"),
    ({"tie_word_embeddings": None}, {}, "tie_word_embeddings must be true or false, found null"),
    ({"text_encoder": {}}, {}, "text_encoder {} is not supported in a gemma3; convert a check"),
    ({"per_layer_config": {}}, {}, "per_layer_config {} is not supported in a gemma3"),
    ({}, {"model_type": "gemma2"}, "text_config: model_type 'gemma2' is not supported in such"),
    ({}, {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supported: tra"),
    ({}, {"hidden_size": "x"}, "text_config: hidden_size must be a whole number of at least 1"),
    ({}, {"vocab_size": 96}, r"tensor model.embed_tokens.weight has shape \[97, 48\], config.json"),
]


@pytest.mark.parametrize(("outer", "inner", "message"), CHANGES)
def test_configs_are_refused_by_name(
    outer: dict[str, Any], inner: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(build_whole("gemma3"), tmp_path, has_old_names=True)
    config = whole_config("gemma3")
    config["text_config"] = {**config["text_config"], **inner}
    (tmp_path / "config.json").write_text(json.dumps(config | outer))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


TENSORS: list[tuple[dict[str, str | None], str]] = [
    ({"language_model.model.norm.weight": None}, "tensor model.norm.weight is missing: transform"),
    (
        {"language_model.model.norm.weight": "model.norm.weight"},
        "tensor model.norm.weight is not part of a Gemma3ForConditionalGeneration, whose text has",
    ),
    ({"language_model.model.norm.weight": "norm.weight"}, "tensor norm.weight is not part of a G"),
    (
        {"vision_tower.post_layernorm.bias": "model.language_model.norm.weight"},
        "language_model.model.norm.weight are both model.norm.weight; keep one of them",
    ),
]


@pytest.mark.parametrize(("renamed", "message"), TENSORS)
def test_tensors_that_the_class_of_the_whole_would_not_find_are_refused(
    renamed: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    saved(build_whole("gemma3"), tmp_path, has_old_names=True)
    weights = load_file(tmp_path / SINGLE_FILE)
    for old, new in renamed.items():
        value = weights.pop(old)
        weights |= {} if new is None else {new: value}
    save_file(weights, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_vllm_is_not_given_a_whole(tmp_path: Path) -> None:
    from sgate_serve.engines.vllm.reading import config_overrides

    saved(build_whole("gemma3"), tmp_path, has_old_names=True)
    with pytest.raises(EngineError, match="is a Gemma3ForConditionalGeneration, and vLLM would"):
        config_overrides(tmp_path, ())
