"""Whether a stock model class of transformers can hold an architecture as it is."""

from sgate_serve.architecture.family import Mixture
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
    if spec.head_units != spec.hidden_size:
        return False
    width, rest = divmod(spec.hidden_size, first.num_heads)
    if not spec.family.has_stated_head_width and width != first.head_dim:
        return False
    return not spec.family.divides_hidden_size or rest == 0


def _has_stock_layers(spec: ModelSpec) -> bool:
    """Say whether all layers of a kind are alike: mixtures, recurrent ones, and others."""
    mixtures = {layer for layer in spec.layers if layer.experts}
    recurrent = {layer for layer in spec.layers if layer.is_recurrent}
    others = {*spec.layers} - mixtures - recurrent
    if any(len(kind) > 1 for kind in (mixtures, recurrent, others)):
        return False
    mixture = spec.family.mixture
    for layer in mixtures:
        if len(set(layer.experts)) > 1 or not layer.experts[0]:
            return False
        if mixture is not None and not _has_stock_mixture(layer, mixture):
            return False
    attending = [layer for layer in spec.layers if not layer.is_recurrent]
    heads = {(layer.num_heads, layer.num_kv_heads, layer.head_dim) for layer in attending}
    return len(heads) <= 1 and all(layer.num_heads for layer in spec.layers) and _has_one_mlp(spec)


def _has_one_mlp(spec: ModelSpec) -> bool:
    """Say whether every layer has an MLP, and those that are no mixtures one width."""
    widths = {layer.mlp_units for layer in spec.layers if not layer.experts}
    return len(widths) <= 1 and all(layer.mlp_units for layer in spec.layers)


def _has_stock_mixture(layer: LayerShape, mixture: Mixture) -> bool:
    """Say whether the stock class has room for so many experts and for such a shared one."""
    if len(layer.experts) < mixture.least_experts:
        return False
    if mixture.shared and not layer.shared_units:
        return False
    return mixture.shared_multiple is None or layer.shared_units % layer.experts[0] == 0
