"""The speed that removed weights promise: bytes read per decode step, FLOPs of a prefill.

Decoding is bound by reading the weights, so its ideal speedup is the ratio of all weight bytes read
per step, the lm_head included and the embedding's single row not. Bytes are those of the precision
that an engine holds the matrices in: where the blocks have fewer bits than the head, removing half
of them is worth less. Prefill is bound by arithmetic, so its ideal is the ratio of matmul FLOPs.
Efficiency is measured speedup over ideal.
"""

from dataclasses import dataclass

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision


@dataclass(frozen=True)
class Ideal:
    """Ideal speedups of one model over another."""

    decode: float
    prefill: float


def decode_weights(spec: ModelSpec) -> int:
    """Count the weights that one decode step reads: everything but the embedding tables.

    A tied head reads the table as its own matrix, so the head always counts in full.
    """
    shapes = spec.tensor_shapes()
    tables = [shapes[name] for name, axes in spec.family.outside.items() if len(axes) == 2]
    tied = spec.vocab_size * spec.hidden_size if spec.tied_head else 0
    return spec.num_parameters - sum(rows * columns for rows, columns in tables) + tied


def decode_bytes(spec: ModelSpec, precision: Precision) -> float:
    """Count the bytes of weights that one decode step reads in a precision."""
    inside, on_top = spec.num_gateable, _weights_on_top(spec)
    rest = decode_weights(spec) - inside - on_top
    return (
        inside * precision.bytes_inside
        + on_top * precision.bytes_outside
        + rest * precision.float_bytes
    )


def prefill_flops(spec: ModelSpec, num_tokens: int) -> int:
    """Count the matmul FLOPs of one prompt of `num_tokens`: linears, attention, one row on top.

    Causal attention computes QKᵀ and PV for half of the token pairs: 2 · heads · head_dim · T²; an
    encoder computes all of them.
    """
    linears = 2 * spec.num_gateable * num_tokens
    heads = sum(layer.num_heads * layer.head_dim for layer in spec.layers)
    attention = (4 if spec.is_encoder else 2) * heads * num_tokens * num_tokens
    return linears + attention + 2 * _weights_on_top(spec)


def _weights_on_top(spec: ModelSpec) -> int:
    """Count the weights of the matrices on the stack: the head, tied or not, or a classifier."""
    if spec.task == CAUSAL_LM:
        return spec.vocab_size * spec.hidden_size
    shapes = (shape for name, shape in spec.tensor_shapes().items() if name in spec.head.tensors)
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def ideal_speedup(
    dense: ModelSpec,
    pruned: ModelSpec,
    prefill_tokens: int,
    precisions: tuple[Precision, Precision] = (PRECISIONS[FP32], PRECISIONS[FP32]),
) -> Ideal:
    """Compare two models, each in its own precision; FLOPs count alike in all of them."""
    return Ideal(
        decode=decode_bytes(dense, precisions[0]) / decode_bytes(pruned, precisions[1]),
        prefill=prefill_flops(dense, prefill_tokens) / prefill_flops(pruned, prefill_tokens),
    )
