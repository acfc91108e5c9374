"""The recurrent layers of one model: which they are, their widths, and tensors besides linears."""

from dataclasses import replace

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import (
    FULL_ATTENTION,
    KEY,
    LINEAR_ATTENTION,
    QUERY,
    VALUE,
    Axes,
    Family,
)
from sgate_serve.architecture.layer_types import stated_layer_types
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.errors import CheckpointError

# Axes of their tensors: the rows of query, key and value; heads; the dimensions of a value.
CHANNELS, HEADS, VALUE_DIMS, LONE, KERNEL = "channels", "heads", "value dims", "lone", "kernel"


def with_recurrent_layers(get: ConfigReader, family: Family) -> Family:
    """Return a family that knows which layers of a model are recurrent.

    Raises CheckpointError for `layer_types` that transformers refuses or that name other types.
    """
    if family.recurrence is None:
        return family
    num_layers = get.integer("num_hidden_layers")
    types = stated_layer_types(get, num_layers, (FULL_ATTENTION, LINEAR_ATTENTION))
    if types is None:
        interval = get.integer("full_attention_interval")
        ends = [index % interval == interval - 1 for index in range(num_layers)]
        types = [FULL_ATTENTION if is_end else LINEAR_ATTENTION for is_end in ends]
    if FULL_ATTENTION not in types:
        raise CheckpointError(
            f"{get.source}: no layer has {FULL_ATTENTION}, and the cache of transformers refuses "
            "such a model; give layer_types or full_attention_interval with one"
        )
    recurrent = frozenset(i for i, name in enumerate(types) if name == LINEAR_ATTENTION)
    return replace(family, recurrent_layers=recurrent)


def recurrent_shape(get: ConfigReader, attending: LayerShape) -> LayerShape:
    """Return the shape of a recurrent layer by the top level of the config.

    `attending` is that of a layer with attention, whose MLP it has.
    """
    return replace(
        attending,
        num_heads=get.integer("linear_num_value_heads"),
        num_kv_heads=get.integer("linear_num_key_heads"),
        head_dim=get.integer("linear_value_head_dim"),
        key_dim=get.integer("linear_key_head_dim"),
    )


def recurrent_axes(family: Family, layer: LayerShape, index: int) -> dict[str, Axes]:
    """Return the tensors of a recurrent layer besides its linears, with their axes."""
    own, name = family.recurrence, family.layer_name(index)
    if own is None or not layer.is_recurrent or not layer.num_heads:
        return {}
    return {
        f"{name}.{own.convolution}.weight": (CHANNELS, LONE, KERNEL),
        f"{name}.{own.decay}": (HEADS,),
        f"{name}.{own.step}": (HEADS,),
        f"{name}.{own.norm}.weight": (VALUE_DIMS,),
    }


def channel_spans(layer: LayerShape) -> dict[str, slice]:
    """Return the channels that each role has in the convolution of a recurrent layer."""
    keys, values = layer.num_kv_heads * layer.key_dim, layer.num_heads * layer.head_dim
    value = slice(2 * keys, 2 * keys + values)
    return {QUERY: slice(0, keys), KEY: slice(keys, 2 * keys), VALUE: value}


def recurrent_sizes(layer: LayerShape, kernel: int) -> dict[str, int]:
    """Return how long each axis is in a layer whose convolution sees `kernel` tokens."""
    channels = 2 * layer.num_kv_heads * layer.key_dim + layer.num_heads * layer.head_dim
    sizes = (channels, layer.num_heads, layer.head_dim, 1, kernel)
    return dict(zip((CHANNELS, HEADS, VALUE_DIMS, LONE, KERNEL), sizes, strict=True))
