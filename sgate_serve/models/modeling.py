"""Pruned transformers models: the stock classes with every layer narrowed to its own widths.

The reference implementation that conversion and every engine are checked against. Nothing of the
stock forward is rewritten: linears are replaced by smaller ones, skipped blocks by zeros.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel

from sgate_serve.families import ATTENTION, MLP, Family
from sgate_serve.models.configuration import SGateLlamaConfig
from sgate_serve.spec import ModelSpec


class SkippedAttention(nn.Module):
    """Stands where an attention block was removed: adds zero, caches nothing."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class SkippedMLP(nn.Module):
    """Stands where an MLP block was removed: adds zero."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class SGateLlamaModel(LlamaModel):
    """The decoder stack of a pruned Llama, without a head."""

    config_class = SGateLlamaConfig

    def __init__(self, config: SGateLlamaConfig) -> None:
        super().__init__(config)
        shrink(self)


class SGateLlamaForCausalLM(LlamaForCausalLM):
    """A pruned Llama with its language-model head."""

    config_class = SGateLlamaConfig

    def __init__(self, config: SGateLlamaConfig) -> None:
        super().__init__(config)
        shrink(self)


def shrink(model: PreTrainedModel) -> None:
    """Narrow the layers of a model built at its config's top-level widths, in place."""
    spec = ModelSpec.from_config(model.config.to_dict(), "config.json")
    root = model.base_model
    num_caches = 0
    for index, shape in enumerate(spec.layers):
        _replace_linears(root, spec, index)
        layer = root.get_submodule(_inside(root, spec.family.layer_name(index)))
        if shape.num_heads:
            layer.self_attn.num_key_value_groups = shape.queries_per_kv
            # A cache reports the length of its first layer: number only layers that fill one.
            layer.self_attn.layer_idx = num_caches
            num_caches += 1
        else:
            _skip(root, spec.family, index, ATTENTION, SkippedAttention())
        if not shape.mlp_units:
            _skip(root, spec.family, index, MLP, SkippedMLP())


def _replace_linears(root: nn.Module, spec: ModelSpec, index: int) -> None:
    for role, (rows, columns) in spec.layers[index].linear_shapes(spec.hidden_size).items():
        name = _inside(root, spec.family.linear(index, role))
        linear = nn.Linear(columns, rows, bias=spec.has_bias(index, role))
        root.set_submodule(name, linear)


def _skip(root: nn.Module, family: Family, index: int, block: str, stand_in: nn.Module) -> None:
    name = _inside(root, family.layer_name(index))
    root.set_submodule(f"{name}.{family.blocks[block]}", stand_in)
    root.set_submodule(_inside(root, family.norm(index, block)), nn.Identity())


def _inside(root: nn.Module, name: str) -> str:
    """Return a module's name below the base model: `model.layers.0` → `layers.0`."""
    return name.removeprefix(f"{root.base_model_prefix}.")
