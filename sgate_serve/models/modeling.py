"""Pruned transformers models: the stock classes with every layer narrowed to its own widths.

The reference implementation that conversion and every engine are checked against. Nothing of the
stock forward is rewritten: linears are replaced by smaller ones, skipped blocks by zeros.
"""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from sgate_serve.families import ATTENTION, FAMILIES, MLP, Family
from sgate_serve.models.configuration import CONFIGS
from sgate_serve.spec import ModelSpec


class SkippedAttention(nn.Module):
    """Stands where an attention block was removed: adds zero, caches nothing."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class SkippedMLP(nn.Module):
    """Stands where an MLP block was removed: adds zero."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def uneven_model(stock: type[PreTrainedModel], config: type) -> type[PreTrainedModel]:
    """Make the subclass of a stock model that shrinks itself once it is built."""

    def build(self: PreTrainedModel, config: Any) -> None:
        stock.__init__(self, config)
        shrink(self)

    fields = {
        "config_class": config,
        "__init__": build,
        "__module__": __name__,
        "__doc__": f"A {stock.__name__} whose layers have their own widths.",
    }
    made: type[PreTrainedModel] = type(f"SGate{stock.__name__}", (stock,), fields)
    return made


def _uneven_models(position: int) -> dict[str, type[PreTrainedModel]]:
    return {
        name: uneven_model(getattr(transformers, family.classes[position]), CONFIGS[name])
        for name, family in FAMILIES.items()
    }


def shrink(model: PreTrainedModel) -> None:
    """Narrow the layers of a model built at its config's top-level widths, in place."""
    spec = ModelSpec.from_config(model.config.to_dict(), "config.json")
    root = model.base_model
    caches = _cache_indices(spec)
    for index, shape in enumerate(spec.layers):
        _replace_linears(root, spec, index)
        attention = root.get_submodule(
            _inside(root, f"{spec.family.layer_name(index)}.{spec.family.blocks[ATTENTION]}")
        )
        if shape.num_heads:
            attention.num_key_value_groups = shape.queries_per_kv
            attention.layer_idx = caches[index]
        else:
            _skip(root, spec.family, index, ATTENTION, SkippedAttention())
        if not shape.mlp_units:
            _skip(root, spec.family, index, MLP, SkippedMLP())


def _cache_indices(spec: ModelSpec) -> dict[int, int]:
    """Return, for each layer with attention, the layer whose place in the KV cache it takes.

    transformers reads the length of the past off the first layer of each kind (full or sliding), so
    that place must be filled: the first layer of the kind that still has attention takes it.
    """
    first: dict[int | None, int] = {}
    for index, window in enumerate(spec.windows):
        first.setdefault(window, index)
    attending = [index for index, shape in enumerate(spec.layers) if shape.num_heads]
    return {index: first.pop(spec.windows[index], index) for index in attending}


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


BASE_MODELS = _uneven_models(1)
CAUSAL_LMS = _uneven_models(2)
# By their names too: a class must be found where it says it lives, to be pickled.
globals().update({made.__name__: made for made in (*BASE_MODELS.values(), *CAUSAL_LMS.values())})
