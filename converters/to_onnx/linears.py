"""The matrices of the graph as fp32 sources: packed where one product serves several linears.

Weights keep their stored [out, in] layout; nothing is read before the file is written, and then
one matrix at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converters.to_onnx.heads import pad_head_columns, pad_head_rows, padded_head_dim
from sgate_serve.checkpoint import Array, Checkpoint
from sgate_serve.family import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE

Transform = Callable[[Array], Array]


@dataclass(frozen=True)
class Linear:
    """One matrix [out, in] of the graph, and how to read its weight and its bias in fp32."""

    name: str
    shape: tuple[int, int]
    weight: Callable[[], Array]
    bias: Callable[[], Array] | None


def read_fp32(checkpoint: Checkpoint, name: str) -> Array:
    """Return a tensor in fp32; exact for tensors stored as bf16, fp16 or fp32."""
    return checkpoint.read(name).astype(np.float32)


def packed_qkv(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return query, key and value as one matrix, its heads padded: rows [q | k | v]."""
    shape = checkpoint.spec.layers[layer]
    width = padded_head_dim(shape.head_dim)
    rows = (shape.num_heads + 2 * shape.num_kv_heads) * width
    pad = partial(pad_head_rows, head_dim=shape.head_dim)
    return _packed(checkpoint, layer, (QUERY, KEY, VALUE), rows, pad)


def attention_output(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return the output projection, its columns padded as the heads are."""
    spec, shape = checkpoint.spec, checkpoint.spec.layers[layer]
    width = shape.num_heads * padded_head_dim(shape.head_dim)
    name = spec.family.linear(layer, OUTPUT)

    def weight() -> Array:
        return pad_head_columns(read_fp32(checkpoint, f"{name}.weight"), shape.head_dim)

    return Linear(name, (spec.hidden_size, width), weight, _bias(checkpoint, layer, OUTPUT))


def packed_gate_up(checkpoint: Checkpoint, layer: int) -> Linear:
    rows = 2 * checkpoint.spec.layers[layer].mlp_units
    return _packed(checkpoint, layer, (GATE, UP), rows, lambda array: array)


def mlp_down(checkpoint: Checkpoint, layer: int) -> Linear:
    spec = checkpoint.spec
    name = spec.family.linear(layer, DOWN)
    shape = (spec.hidden_size, spec.layers[layer].mlp_units)
    weight = partial(read_fp32, checkpoint, f"{name}.weight")
    return Linear(name, shape, weight, _bias(checkpoint, layer, DOWN))


def head(checkpoint: Checkpoint) -> Linear:
    """Return the head; a tied one bears the embedding's name and so shares its initializer."""
    spec = checkpoint.spec
    name = spec.family.embedding if spec.tied_head else spec.family.head
    shape = (spec.vocab_size, spec.hidden_size)
    return Linear(name, shape, partial(read_fp32, checkpoint, f"{name}.weight"), None)


def _packed(
    checkpoint: Checkpoint, layer: int, roles: Sequence[str], rows: int, transform: Transform
) -> Linear:
    """Stack the linears of `roles`, each transformed, to `rows` rows.

    Where only some have a bias, the others get zeros.
    """
    spec = checkpoint.spec
    names = [spec.family.linear(layer, role) for role in roles]

    def weight() -> Array:
        return np.concatenate(
            [transform(read_fp32(checkpoint, f"{name}.weight")) for name in names]
        )

    def bias() -> Array:
        return np.concatenate([transform(bias_or_zeros(role)) for role in roles])

    def bias_or_zeros(role: str) -> Array:
        read = _bias(checkpoint, layer, role)
        num_rows = spec.layers[layer].linear_shapes(spec.hidden_size)[role][0]
        return read() if read else np.zeros(num_rows, np.float32)

    has_bias = any(spec.has_bias(layer, role) for role in roles)
    name = f"{spec.family.layer_name(layer)}.{'_'.join(roles)}"
    return Linear(name, (rows, spec.hidden_size), weight, bias if has_bias else None)


def _bias(checkpoint: Checkpoint, layer: int, role: str) -> Callable[[], Array] | None:
    if not checkpoint.spec.has_bias(layer, role):
        return None
    return partial(read_fp32, checkpoint, f"{checkpoint.spec.family.linear(layer, role)}.bias")
