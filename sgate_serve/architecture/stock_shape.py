"""Whether a stock model class of transformers can hold an architecture as it is."""

from sgate_serve.architecture.family import FULL_ATTENTION, SLIDING_ATTENTION
from sgate_serve.architecture.mixture import Mixture
from sgate_serve.architecture.sgate_config import (
    GLOBAL_HEAD_DIM,
    GLOBAL_KV_HEADS,
    HEAD_DIM,
    KV_HEADS,
    UNITS,
    narrower_windows,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec


def is_stock_shape(spec: ModelSpec) -> bool:
    """Say whether the stock model class of the family can hold this spec as it is.

    The config validation of most families requires the hidden size to be a multiple of the head
    count; where the width of a head is derived from the two, it must be the one that they give.
    """
    first = spec.layers[0]
    if not _has_stock_layers(spec) or not first.num_heads or not first.mlp_units:
        return False
    if spec.extra_biases or spec.lowered or spec.norm_size != spec.hidden_size:
        return False
    if narrower_windows(spec.windows):
        return False
    if spec.head_units != spec.hidden_size:
        return False
    width, rest = divmod(spec.hidden_size, first.num_heads)
    if not spec.family.has_stated_head_width and width != first.head_dim:
        return False
    return not spec.family.divides_hidden_size or rest == 0


def heads_by_type(spec: ModelSpec) -> dict[str, int]:
    """Return how a stock config states the heads of its layers, where they depend on the window."""
    if not spec.family.has_heads_by_type:
        return {}
    by_type = _by_head_type(spec)
    full = by_type[FULL_ATTENTION][0]
    first = by_type.get(SLIDING_ATTENTION, [full])[0]
    sizes = {KV_HEADS: first.num_kv_heads, HEAD_DIM: first.head_dim, GLOBAL_HEAD_DIM: full.head_dim}
    return sizes if full.has_values else sizes | {GLOBAL_KV_HEADS: full.num_kv_heads}


def stock_units(spec: ModelSpec) -> dict[str, int]:
    """Return how a stock config states the width of MLPs, where some are a multiple of it."""
    if all(layer.mlp_factor == 1 for layer in spec.layers):
        return {}
    return {UNITS: _own_units(spec.layers[0]) // spec.layers[0].mlp_factor}


def _own_units(layer: LayerShape) -> int:
    """Return the width of a layer's MLP, which experts may be beside."""
    return layer.shared_units if layer.experts else layer.mlp_units


def _by_head_type(spec: ModelSpec) -> dict[str, list[LayerShape]]:
    found: dict[str, list[LayerShape]] = {}
    for index, layer in enumerate(spec.layers):
        found.setdefault(spec.head_type(index), []).append(layer)
    return found


def _has_stock_heads(spec: ModelSpec) -> bool:
    """Say whether the heads of all layers are alike, or those of layers of one type."""
    heads = (
        {(one.num_heads, one.num_kv_heads, one.head_dim) for one in layers}
        for layers in _by_head_type(spec).values()
    )
    # Only layers without values may have a number of KV heads of their own.
    stated = (one for one in spec.layers if one.has_values and not one.is_recurrent)
    kv_heads = {one.num_kv_heads for one in stated}
    return all(len(each) == 1 for each in heads) and len(kv_heads) <= 1


def _has_stock_layers(spec: ModelSpec) -> bool:
    """Say whether all layers of a kind are alike: mixtures, recurrent ones, and others."""
    mixtures = [layer for layer in spec.layers if layer.experts]
    experts = {(layer.experts, layer.top_k) for layer in mixtures}
    shared = {divmod(layer.shared_units, layer.mlp_factor) for layer in mixtures}
    widths = {divmod(one.mlp_units, one.mlp_factor) for one in spec.layers if not one.experts}
    heads = {layer.num_heads for layer in spec.layers if not layer.is_recurrent}
    if any(len(kind) > 1 for kind in (experts, shared, widths, heads)):
        return False
    mixture = spec.family.mixture
    for layer in mixtures[:1]:
        if len(set(layer.experts)) > 1 or not layer.experts[0]:
            return False
        if mixture is not None and not _has_stock_mixture(layer, mixture):
            return False
    if any(rest for _, rest in widths | shared):
        return False
    has_blocks = all(layer.num_heads and layer.mlp_units for layer in spec.layers)
    return has_blocks and _has_stock_heads(spec)


def _has_stock_mixture(layer: LayerShape, mixture: Mixture) -> bool:
    """Say whether the stock class has room for so many experts and for such a shared one."""
    if len(layer.experts) < mixture.least_experts:
        return False
    if mixture.shared and not layer.shared_units:
        return False
    return mixture.shared_multiple is None or layer.shared_units % layer.experts[0] == 0
