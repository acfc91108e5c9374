"""A small ragged model given by its shapes alone, and the spec read from them."""

from dataclasses import replace
from typing import Any

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.ragged import normalize_config
from tests.checkpoint.ragged.layouts import Config, stored

SOURCE = "model/config.json"
CONFIG: Config = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 20,
    "vocab_size": 11,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
# The remaining layers: two KV heads of three, no attention, no MLP.
LAYERS = (LayerShape(4, 2, 8, 20), LayerShape(0, 0, 8, 7), LayerShape(2, 1, 8, 0))


def spec_of(config: Config, layers: tuple[LayerShape, ...] = LAYERS) -> ModelSpec:
    return replace(ModelSpec.from_config(config, SOURCE), layers=layers)


def shapes_of(config: Config, layers: tuple[LayerShape, ...] = LAYERS) -> dict[str, Any]:
    return dict(spec_of(config, layers).tensor_shapes())


def understood(config: Config, shapes: dict[str, Any]) -> ModelSpec:
    found, layout = normalize_config(config, stored(shapes), SOURCE)
    assert layout is not None and found["model_type"] == "sgate"
    return ModelSpec.from_config(found, SOURCE)
