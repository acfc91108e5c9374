"""Ideal speedups from removed weights: bytes read per decode step, FLOPs of a prefill.

Decoding is bound by reading the weights, so its ideal speedup is the ratio of all weight bytes read
per step, including the lm_head but not the embedding's single row. Bytes are counted in the
precision in which the engine holds the matrices: if the blocks have fewer bits than the head,
removing half of them gains less. Prefill is bound by arithmetic, so its ideal speedup is the ratio
of matmul FLOPs. Efficiency is measured over ideal speedup.

Of a mixture's experts a token uses some, and a step those of all its tokens. How many these are is
estimated as if experts were chosen equally often and independently.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.work import HEAD, NORMS, PROJECTIONS, UNITS, kind_of
from sgate_serve.onnx_format.precision import FP32, IN_FLOATS, PRECISIONS, Precision


@dataclass(frozen=True)
class Ideal:
    """The ideal speedups of one model over another."""

    decode: float
    prefill: float


def decode_weights(spec: ModelSpec, batch: int = 1) -> int:
    """Count the weights that one decode step reads: all but embedding tables and idle experts.

    A tied head reads the table as its matrix, so the head always counts in full.
    """
    shapes = spec.tensor_shapes()
    tables = [shapes[name] for name, axes in spec.outside.items() if len(axes) == 2]
    tied = spec.vocab_size * spec.hidden_size if spec.tied_head else 0
    idle = spec.num_gateable - _linear_weights(spec, batch)
    return spec.num_parameters - sum(rows * columns for rows, columns in tables) + tied - idle


def decode_bytes(spec: ModelSpec, precision: Precision, batch: int = 1) -> float:
    """Count the bytes of weights that one decode step of `batch` tokens reads in a precision."""
    return sum(weight_bytes(spec, precision, batch).values())


def weight_bytes(spec: ModelSpec, precision: Precision, batch: int = 1) -> dict[str, float]:
    """Return the bytes of weights that one decode step reads, by kind of work."""
    found = {PROJECTIONS: 0.0, UNITS: 0.0}
    for roles, weights, is_expert in _linears(spec, batch):
        held = precision.of_experts if is_expert else precision
        is_finer = not set(roles).isdisjoint(held.finer)
        size = held.bytes_outside if is_finer else held.bytes_inside
        size = size if IN_FLOATS.isdisjoint(roles) else held.float_bytes
        found[kind_of(roles)] += weights * size
    outside = _weights_outside(spec)
    return found | {
        HEAD: outside[HEAD] * precision.bytes_outside,
        NORMS: outside[NORMS] * precision.float_bytes,
    }


def weight_counts(spec: ModelSpec) -> dict[str, int]:
    """Return the weights that one decode step reads, by kind of work."""
    found = {PROJECTIONS: 0, UNITS: 0}
    for roles, weights, _ in _linears(spec):
        found[kind_of(roles)] += weights
    return found | _weights_outside(spec)


def _weights_outside(spec: ModelSpec) -> dict[str, int]:
    """Return the weights of the head, and of norms and biases."""
    head = _head_weights(spec)
    return {HEAD: head, NORMS: decode_weights(spec) - _linear_weights(spec) - head}


def _linear_weights(spec: ModelSpec, batch: int = 1) -> int:
    return sum(weights for _, weights, _ in _linears(spec, batch))


def _linears(spec: ModelSpec, batch: int = 1) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Yield roles of each linear inside the blocks, weights of it that a step of `batch` reads.

    The last value says whether it belongs to an expert.
    """
    for layer in range(len(spec.layers)):
        for module, roles in spec.modules(layer).items():
            rows, columns = spec.module_shape(layer, module)
            weights = round(rows * columns * spec.share_read(module, batch))
            yield roles, weights, spec.expert_of(module) is not None


def prefill_flops(spec: ModelSpec, num_tokens: int) -> int:
    """Count the matmul FLOPs of a prompt of `num_tokens`: linears, attention, one row of the head.

    Causal attention computes QKᵀ and PV for half of the token pairs: 2 · heads · head_dim · T²; an
    encoder computes all of them. A recurrent layer multiplies its states by three vectors a token.
    """
    linears = 2 * _linear_weights(spec) * num_tokens
    attending = (layer for layer in spec.layers if not layer.is_recurrent)
    heads = sum(layer.num_heads * layer.head_dim for layer in attending)
    attention = (4 if spec.is_encoder else 2) * heads * num_tokens * num_tokens
    # Each token reads what its key holds, writes to the state and reads it.
    states = sum(layer.num_heads * layer.head_dim * layer.key_dim for layer in spec.layers)
    attention += 6 * states * num_tokens
    return linears + attention + 2 * _head_weights(spec)


def _head_weights(spec: ModelSpec) -> int:
    """Count the weights of the head's matrices: an lm_head, tied or not, or a classifier's."""
    if spec.task == CAUSAL_LM:
        return spec.vocab_size * spec.hidden_size
    shapes = (shape for name, shape in spec.tensor_shapes().items() if name in spec.head.tensors)
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def ideal_speedup(
    dense: ModelSpec,
    pruned: ModelSpec,
    prefill_tokens: int,
    precisions: tuple[Precision, Precision] = (PRECISIONS[FP32], PRECISIONS[FP32]),
    batch: int = 1,
) -> Ideal:
    """Compare two models, each in its own precision; FLOPs count the same in all precisions.

    A decode step has `batch` tokens.
    """
    before = decode_bytes(dense, precisions[0], batch)
    return Ideal(
        decode=before / decode_bytes(pruned, precisions[1], batch),
        prefill=prefill_flops(dense, prefill_tokens) / prefill_flops(pruned, prefill_tokens),
    )
