"""The KV cache in the decoder graph: past inputs and present outputs, in floats or in int8.

In int8 every channel of a KV head has one scale for keys and one for values, which are constants of
the graph: GroupQueryAttention rounds what a call adds and reads it all rounded. So a call sees of
its own tokens what later ones see, and prefixes are put back as they were held.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import Attribute, Dims, GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.integer_blocks import Floats
from converters.to_onnx.rescaling import random_tokens
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names

# Past input → the scale of each channel [1, KV heads, 1, head width]. None: the cache is in floats.
CacheScales = Mapping[str, Floats]
NO_SCALES: CacheScales = MappingProxyType({})
KEY, VALUE = "key", "value"
LARGEST = 127
# How much more a channel may hold than random tokens give it. What is beyond is cut off, which
# costs far more than coarser steps.
MARGIN = 1.25


class KeyValueCache:
    """The past and present of each layer of one graph."""

    def __init__(self, graph: GraphBuilder, spec: ModelSpec, scales: CacheScales) -> None:
        self._graph, self._spec, self._scales = graph, spec, scales
        self._type = ir.DataType.INT8 if scales else graph.float_type

    def past(self, layer: int) -> list[ir.Value | None]:
        """Add and return the inputs for the keys and values of earlier calls."""
        dims = self._dims(layer, "past")
        return [self._graph.input(name, self._type, dims) for name in past_names(layer)]

    def present(self, layer: int, values: Sequence[ir.Value]) -> None:
        """Make the keys and values of this call and of earlier ones outputs."""
        for part, value in zip((KEY, VALUE), values, strict=True):
            name = f"{names.PRESENT_PREFIX}{layer}.{part}"
            self._graph.output(value, name, self._dims(layer, "present"), self._type)

    def scales(self, layer: int) -> list[ir.Value | None]:
        if not self._scales:
            return [None, None]
        return [
            self._graph.constant(f"{name}.scale", self._scales[name]) for name in past_names(layer)
        ]

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The attributes of GroupQueryAttention that say how the cache is stored."""
        if not self._scales:
            return {}
        kind = "PER_CHANNEL"
        return {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}

    def _dims(self, layer: int, kind: str) -> Dims:
        width = HeadLayout.of(self._spec, layer).width
        return ["b", self._spec.layers[layer].num_kv_heads, f"{kind}.{layer}", width]


def past_names(layer: int) -> list[str]:
    return [f"{names.PAST_PREFIX}{layer}.{part}" for part in (KEY, VALUE)]


def measured_scales(checkpoint: Checkpoint, folder: Path) -> CacheScales:
    """Return the scales that suit the graph in `folder`, whose cache is in floats."""
    from converters.to_onnx.input_statistics import present_values

    spec, largest = checkpoint.spec, dict[str, Floats]()
    # Values do not rotate.
    pairs = {past_names(i)[0]: HeadLayout.of(spec, i).num_pairs for i in range(len(spec.layers))}
    for found in present_values(folder, random_tokens(checkpoint)):
        for present, held in found.items():
            name = present.replace(names.PRESENT_PREFIX, names.PAST_PREFIX)
            here = _lengths(held, pairs.get(name, 0))
            largest[name] = np.maximum(largest.get(name, 0), here.max(axis=1))
    return {name: _scale(reached)[None, :, None] for name, reached in largest.items()}


def _lengths(held: Floats, num_pairs: int) -> Floats:
    """Return how large each channel of keys or values [KV heads, s, width] can be elsewhere.

    A rotation turns both channels of a pair, half a head apart, into each other at positions that
    are not measured.
    """
    lengths = np.abs(held.astype(np.float32))
    half = lengths.shape[-1] // 2
    first, second = lengths[..., :num_pairs], lengths[..., half : half + num_pairs]
    first[...] = second[...] = np.hypot(first, second)
    return lengths


def _scale(reached: Floats) -> Floats:
    scale = reached.astype(np.float32) * (MARGIN / LARGEST)
    return np.where(scale > 0, scale, np.float32(1))
