"""The sgate parts of a config: what is written is what docs/format.md says, and is read back."""

import json
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.sgate_config import (
    LayerSizes,
    SgateBlock,
    sgate_config,
    stock_config,
)
from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.architecture.spec import ModelSpec

STOCK: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 11,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 10,
    "vocab_size": 7,
}
BLOCK = SgateBlock(
    "llama",
    "llama",
    extra_biases=frozenset({"model.layers.9.mlp.down_proj", "model.layers.10.mlp.down_proj"}),
    norm_size=16,
    head_units=5,
    lowered={"model.layers.1.mlp.up_proj": Lowered(rows=3), "lm_head": Lowered(2, 4)},
)
SHAPES = (LayerShape(0, 0, 4, 4), LayerShape(2, 1, 4, 0), *[LayerShape(4, 2, 4, 10)] * 9)


def sizes_of(family: str, *layers: LayerShape, hidden: int = 12) -> LayerSizes:
    return LayerSizes(FAMILIES[family], layers, hidden, hidden)


def test_the_block_is_written_in_the_order_of_the_format() -> None:
    assert json.dumps(BLOCK.to_json()) == (
        '{"version": 2, "family": "llama", "base_model_type": "llama", "extra_biases": '
        '["model.layers.10.mlp.down_proj", "model.layers.9.mlp.down_proj"], "norm_size": 16, '
        '"head_units": 5, "lowered": {"model.layers.1.mlp.up_proj": {"rows": 3}, '
        '"lm_head": {"rows": 2, "columns": 4}}}'
    )
    assert list(SgateBlock("gpt2", "gpt2").to_json()) == [
        "version",
        "family",
        "base_model_type",
        "extra_biases",
    ]


def test_a_written_config_is_read_back() -> None:
    sizes = sizes_of("llama", *SHAPES)
    config = sgate_config(STOCK, sizes, SgateBlock("llama", "llama"))
    assert config["model_type"] == "sgate"
    assert config["architectures"] == ["SGateLlamaForCausalLM"]
    assert config["per_layer_config"] == {
        "00": {"intermediate_size": 4, "skip": ["attention"]},
        "01": {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["mlp"]},
    }
    assert ModelSpec.from_config(config, "config.json").layers == SHAPES
    assert SgateBlock.read(config | {"sgate": BLOCK.to_json()}) == BLOCK
    assert stock_config(config) == STOCK


def test_a_stock_config_has_the_block_of_a_stock_model() -> None:
    assert SgateBlock.read(STOCK) == SgateBlock("llama", "llama")


def test_top_level_sizes_are_the_maximum_and_leave_out_what_no_layer_has() -> None:
    assert sizes_of("llama", *SHAPES).top_level() == {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 10,
    }
    assert sizes_of("llama", LayerShape(0, 0, 4, 6)).top_level() == {
        "head_dim": 4,
        "intermediate_size": 6,
    }


def test_head_counts_that_state_the_width_of_a_head_stay() -> None:
    layers = LayerShape(2, 1, 2, 6), LayerShape(4, 1, 2, 6)
    top = {"num_attention_heads": 6, "num_key_value_heads": 1, "intermediate_size": 6}
    assert sizes_of("phi3", *layers).top_level() == top
    assert sizes_of("gpt2", LayerShape(2, 2, 3, 6)).top_level() == {"n_head": 4, "n_inner": 6}
    narrowed = LayerSizes(FAMILIES["phi3"], layers, 10, 12)
    assert narrowed.top_level() == top | {"num_attention_heads": 4, "head_dim": 2}
    # Ragged checkpoints may share KV heads out otherwise in each layer.
    mixed = sizes_of("phi3", LayerShape(4, 4, 3, 6), LayerShape(4, 1, 3, 6)).top_level()
    assert (mixed["num_attention_heads"], mixed["num_key_value_heads"]) == (4, 4)
