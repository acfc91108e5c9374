"""One hand-pruned model in the layouts of other tools, with shapes instead of weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import TensorInfo

Config = dict[str, Any]


def stock(config: Config, spec: ModelSpec) -> Config:
    """The dense config, as `save_pretrained` leaves it after a tool has cut linears."""
    left_out = ("sgate", "per_layer_config", "architectures")
    dense = {key: value for key, value in config.items() if key not in left_out}
    return dense | {"model_type": spec.family.name, "architectures": [spec.head.model_class]}


def per_layer_config(config: Config, spec: ModelSpec) -> Config:
    """The config of transformers: keys without padding zeros, with sizes of skipped blocks."""
    layers = {
        str(index): {
            "num_attention_heads": layer.num_heads or 4,
            "num_key_value_heads": layer.num_kv_heads or 2,
            "intermediate_size": layer.mlp_units or 30,
            "skip": [*["attention"] * (not layer.num_heads), *["mlp"] * (not layer.mlp_units)],
            "hidden_act": "silu",
        }
        for index, layer in enumerate(spec.layers)
    }
    return stock(config, spec) | {"per_layer_config": layers}


def nested_per_layer_config(config: Config, spec: ModelSpec) -> Config:
    blocks = block_configs(config, spec)["block_configs"]
    return stock(config, spec) | {"per_layer_config": dict(enumerate(blocks))}


def block_configs(config: Config, spec: ModelSpec) -> Config:
    """The config of NVIDIA's Puzzle, with all the switches that are off."""
    off = {"no_op": False, "replace_with_linear": False, "sparsify": None}
    gone = off | {"no_op": True}
    attention_off = {"window_length": None, "num_sink_tokens": None, "unshifted_sink": False}
    blocks = [
        {
            "attention": attention_off
            | (off | {"n_heads_in_group": layer.queries_per_kv} if layer.num_heads else gone),
            "ffn": off | {"intermediate_size": layer.mlp_units, "ffn_mult": None, "gated": True}
            if layer.mlp_units
            else gone | {"hidden_act": "silu"},
        }
        for layer in spec.layers
    ]
    nvidia = {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": blocks,
    }
    return stock(config, spec) | nvidia


def lists(config: Config, spec: ModelSpec) -> Config:
    sizes = {
        "layer_head_num": [layer.num_heads for layer in spec.layers],
        "layer_inter_size": [layer.mlp_units for layer in spec.layers],
    }
    plain = {key: value for key, value in stock(config, spec).items() if key != "head_dim"}
    return plain | sizes


def stock_lists(config: Config, spec: ModelSpec) -> Config:
    """The stock keys hold lists."""
    return stock(config, spec) | {
        "num_attention_heads": [layer.num_heads for layer in spec.layers],
        "num_key_value_heads": [layer.num_kv_heads for layer in spec.layers],
        "intermediate_size": [layer.mlp_units for layer in spec.layers],
    }


# Layout → its config, and the line that must report it.
LAYOUTS: Mapping[str, tuple[Callable[[Config, ModelSpec], Config], str]] = {
    "stock": (stock, "llama checkpoint, sizes of each layer from the tensor shapes"),
    "per_layer_config": (
        per_layer_config,
        "llama checkpoint, sizes of each layer from per_layer_config",
    ),
    "nested": (
        nested_per_layer_config,
        "llama checkpoint, sizes of each layer from per_layer_config",
    ),
    "block_configs": (
        block_configs,
        "nemotron-nas checkpoint, sizes of each layer from block_configs",
    ),
    "lists": (lists, "llama checkpoint, sizes of each layer from layer_head_num, layer_inter_size"),
    "stock lists": (
        stock_lists,
        "llama checkpoint, sizes of each layer from intermediate_size, num_attention_heads, "
        "num_key_value_heads",
    ),
}


def rewrite_config(folder: Path, layout: str) -> Config:
    """Replace the config of an `sgate` folder with that of another tool."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    foreign = LAYOUTS[layout][0](config, ModelSpec.from_config(config, str(path)))
    path.write_text(json.dumps(foreign), encoding="utf-8")
    return foreign


def stored(shapes: Mapping[str, Sequence[int]], file: str = "model.safetensors") -> dict[str, Any]:
    """Return headers with these shapes, of a file that is never read."""
    return {
        name: TensorInfo(name, Path(file), "F32", tuple(shape), 0, 0)
        for name, shape in shapes.items()
    }
