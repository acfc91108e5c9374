"""Pruned transformers models: the stock classes with every layer narrowed to its own widths.

Conversion and every engine are checked against these models. The stock forward is not rewritten:
smaller linears replace the stock ones, and zeros replace skipped blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import ATTENTION, MLP, Family
from sgate_serve.architecture.sgate_config import narrower_windows
from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.int8 import CONFIG_KEY
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.errors import CheckpointError
from sgate_serve.models.configuration import CONFIGS
from sgate_serve.models.experts import NarrowExperts
from sgate_serve.models.layers import (
    IndexedLinear,
    NarrowRMSNorm,
    Skipped,
    SkippedPair,
    TransposedIndexedLinear,
)
from sgate_serve.models.names import name_in
from sgate_serve.models.recurrence import narrow_recurrence
from sgate_serve.models.routers import narrow_router
from sgate_serve.models.windows import narrow_window


def uneven_model(stock: type[PreTrainedModel], config: type) -> type[PreTrainedModel]:
    """Make a subclass of a stock model that narrows its layers once it is built."""

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


# By family and task.
MODELS: dict[str, dict[str, type[PreTrainedModel]]] = {
    name: {
        task: uneven_model(getattr(transformers, head.model_class), CONFIGS[name])
        for task, head in family.tasks.items()
    }
    for name, family in FAMILIES.items()
}
# Pickle looks classes up by name in the module that they name.
globals().update({made.__name__: made for models in MODELS.values() for made in models.values()})


def shrink(model: PreTrainedModel) -> None:
    """Narrow the layers of a model built at its config's top-level widths, in place.

    It is idempotent: some families' classifiers build their stack by AutoModel, which has narrowed
    it already.
    """
    spec = ModelSpec.from_config(model.config.to_dict(), CONFIG_FILE)
    if spec.lowered and getattr(model.config, CONFIG_KEY, None) is not None:
        raise CheckpointError(
            "from_pretrained: compressed-tensors does not support linears with index vectors; load "
            "this int8 folder by sgate_serve.models.loading.load_model"
        )
    caches, narrower = _cache_indices(spec), narrower_windows(spec.windows)
    for index, shape in enumerate(spec.layers):
        if shape.experts:
            _narrow_mixture(model, spec, index)
        for module in spec.modules(index):
            if not _is_routed(spec, index, module):
                own = name_in(model, spec.family, module)
                model.set_submodule(own, _linear(spec, index, module))
        if shape.num_heads:
            _narrow_attention(model, spec, index, caches.get(index))
            if (window := narrower.get(index)) is not None:
                narrow_window(_find(model, spec.family, index, ATTENTION), window)
        for block in shape.skipped_blocks:
            _skip(model, spec.family, index, block)
    _state_positions(model, spec, [*caches.values()])
    if spec.norm_size != spec.hidden_size:
        _narrow_stream(model, spec)
    _narrow_head(model, spec)


def _state_positions(model: PreTrainedModel, spec: ModelSpec, slots: Sequence[int]) -> None:
    """State the positions of tokens where transformers would not know them.

    It takes the length of the past from the first slot, which stays empty if no layer uses it.
    """
    first = next(index for index, shape in enumerate(spec.layers) if not shape.is_recurrent)
    if not slots or first in slots:
        return

    def state(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        past, inputs = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if past is None or kwargs.get("position_ids") is not None:
            return None
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        inputs = args[0] if inputs is None else inputs
        start = past.get_seq_length(slots[0])
        positions = torch.arange(start, start + inputs.shape[1], device=inputs.device)
        return args, kwargs | {"position_ids": positions[None]}

    model.base_model.register_forward_pre_hook(state, with_kwargs=True)


def _cache_indices(spec: ModelSpec) -> dict[int, int]:
    """Return, for each layer with attention, the layer whose slot in the KV cache it uses.

    transformers takes the length of the past from the first layer of each type (full or sliding).
    So the first layer of the type that still has attention uses that slot.
    """
    first: dict[bool, int] = {}
    own = [index for index, shape in enumerate(spec.layers) if not shape.is_recurrent]
    slides = [window is not None for window in spec.windows]
    for index in own:
        first.setdefault(slides[index], index)
    shapes = spec.layers
    attending = [index for index in own if shapes[index].num_heads and shapes[index].has_keys]
    return {index: first.pop(slides[index], index) for index in attending}


def _linear(spec: ModelSpec, index: int, module: str) -> nn.Module:
    roles, dims = spec.modules(index)[module], spec.linear_shapes(index)
    shape, lowered = spec.module_shape(index, module), spec.lowered.get(module, Lowered())
    has_bias = spec.has_bias(index, roles[0])
    size = sum(dims[role][0] for role in roles)
    if spec.family.is_transposed:
        return TransposedIndexedLinear(shape[::-1], lowered, size, has_bias)
    if lowered != Lowered():
        return IndexedLinear(shape, lowered, size, has_bias)
    return nn.Linear(shape[1], shape[0], bias=has_bias)


def _is_routed(spec: ModelSpec, index: int, module: str) -> bool:
    """Say whether a linear belongs to an expert that a router chooses."""
    expert = spec.expert_of(module)
    return expert is not None and expert < len(spec.layers[index].experts)


def _narrow_mixture(model: PreTrainedModel, spec: ModelSpec, index: int) -> None:
    """Give a layer its own experts and router, and remove a shared expert without units."""
    family, mixture = spec.family, spec.family.mixture
    assert mixture is not None, "only such a family has experts"
    experts = name_in(model, family, family.experts_name(index))
    model.set_submodule(experts, NarrowExperts(spec, index))
    narrow_router(model, spec, index)
    is_skipped = not spec.layers[index].shared_units
    layer = family.layer_name(index)
    if mixture.shared is not None and is_skipped:
        model.set_submodule(name_in(model, family, f"{layer}.{mixture.shared}"), Skipped())
    if mixture.shared_gate is not None:
        gate = Skipped() if is_skipped else nn.Linear(spec.hidden_size, 1, bias=False)
        model.set_submodule(name_in(model, family, f"{layer}.{mixture.shared_gate}"), gate)


def _narrow_attention(
    model: PreTrainedModel, spec: ModelSpec, index: int, slot: int | None
) -> None:
    """Give a layer's attention its own heads, and its slot in the KV cache, if it has one."""
    attention = _find(model, spec.family, index, ATTENTION)
    if spec.layers[index].is_recurrent:
        narrow_recurrence(attention, spec, index)
        return
    _set_head_counts(attention, spec.layers[index])
    _set_head_norms(model, spec, index)
    if hasattr(attention, "layer_idx"):
        setattr(attention, "layer_idx", slot)  # noqa: B010  # typed as a tensor


def _set_head_counts(attention: nn.Module, shape: LayerShape) -> None:
    """Set the head counts that an attention module's stock forward uses, if it has them.

    Where heads have sinks, there are as many.
    """
    width = shape.head_dim
    counts = {
        "num_key_value_groups": shape.queries_per_kv,
        "num_key_value_heads": shape.num_kv_heads,
        "num_attention_heads": shape.num_heads,
        "num_heads": shape.num_heads,
        "n_heads": shape.num_heads,
        "all_head_size": shape.num_heads * width,
        "split_size": shape.num_heads * width,
    }
    for name, count in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, count)
    if hasattr(attention, "sinks"):
        attention.register_parameter("sinks", nn.Parameter(torch.empty(shape.num_heads)))
    if hasattr(attention, "qkv_proj"):
        view = _LayerConfig(attention.config, shape.num_heads)
        setattr(attention, "config", view)  # noqa: B010  # typed as a tensor


def _set_head_norms(model: PreTrainedModel, spec: ModelSpec, index: int) -> None:
    """Give a layer norms on query and key of its own width, where they span all of its heads."""
    for name, size in spec.head_norm_sizes(index).items():
        own = name_in(model, spec.family, name)
        stock: Any = model.get_submodule(own)
        if stock.weight.shape != (size,):
            model.set_submodule(own, type(stock)(size, spec.norm_eps))


class _LayerConfig:
    """A view of a model's config for one layer: its own head count, everything else shared."""

    def __init__(self, config: Any, num_attention_heads: int) -> None:
        self._shared = config
        self.num_attention_heads = num_attention_heads

    def __getattr__(self, name: str) -> Any:
        if name == "_shared":  # while unpickling or copying
            raise AttributeError(name)
        return getattr(self._shared, name)


def _find(model: PreTrainedModel, family: Family, index: int, block: str) -> nn.Module:
    name = name_in(model, family, family.block_modules(index, block)[0])
    module: nn.Module = model.get_submodule(name)
    return module


def _skip(model: PreTrainedModel, family: Family, index: int, block: str) -> None:
    """Replace a block by zeros, and its norms by nothing unless they are on the sum."""
    first, *others = family.block_modules(index, block)
    mixture = family.mixture
    is_pair = (block == ATTENTION and index not in family.recurrent_layers) or (
        block == MLP and mixture is not None and mixture.returns_shares
    )
    stand_in: nn.Module = SkippedPair() if is_pair else Skipped()
    if block == MLP and others:
        stand_in = nn.Identity()
    model.set_submodule(name_in(model, family, first), stand_in)
    for name in others:
        model.set_submodule(name_in(model, family, name), Skipped())
    if family.residual == "post":
        return
    for norm in family.block_norms(index, block):
        model.set_submodule(name_in(model, family, norm), nn.Identity())
    if block == MLP and mixture is not None and mixture.branch is not None:
        assert mixture.switch is not None, "layers of such a class ask whether they have experts"
        layer: Any = model.get_submodule(name_in(model, family, family.layer_name(index)))
        setattr(layer, mixture.switch, False)
        del layer.router, layer.experts


def _narrow_stream(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Make residual norms divide by the width before removal, and keep the embedding scale."""
    norms = [name for index in range(len(spec.layers)) for name in spec.norms(index)]
    assert spec.family.final_norm is not None, "only RMSNorm families lose residual dimensions"
    for name in (*norms, spec.family.final_norm):
        norm = NarrowRMSNorm(
            spec.hidden_size, spec.norm_size, spec.norm_eps, spec.family.norm_offset
        )
        model.set_submodule(name_in(model, spec.family, name), norm)
    table = model.get_submodule(name_in(model, spec.family, spec.family.embedding))
    if spec.family.scales_embeddings:
        assert spec.embedding_scale is not None
        table.scalar_embed_scale = spec.embedding_scale
        table.embed_scale = torch.tensor(spec.embedding_scale)


def _narrow_head(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Replace linears on top whose units were removed, and a head that got a bias by pruning."""
    dense = spec.head.dense
    if dense is not None and spec.head_units != spec.hidden_size:
        inner = nn.Linear(spec.hidden_size, spec.head_units)
        model.set_submodule(name_in(model, spec.family, dense.inner), inner)
        outer = nn.Linear(spec.head_units, spec.num_labels)
        model.set_submodule(name_in(model, spec.family, dense.outer), outer)
    if spec.family.head in spec.extra_biases and hasattr(model, spec.family.head):
        head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=True)
        model.set_submodule(spec.family.head, head)
