"""The speed that removed weights promise: bytes read per decode step, FLOPs of a prefill.

Decoding is bound by reading the weights, so its ideal speedup is the ratio of all weight bytes read
per step, the lm_head included and the embedding's single row not. Prefill is bound by arithmetic,
so its ideal is the ratio of matmul FLOPs. Efficiency is measured speedup over ideal.
"""

from dataclasses import dataclass

from sgate_serve.spec import ModelSpec


@dataclass(frozen=True)
class Ideal:
    """Ideal speedups of one model over another."""

    decode: float
    prefill: float


def decode_weights(spec: ModelSpec) -> int:
    """Count the weights that one decode step reads: everything but the embedding table.

    A tied head reads the table as its own matrix, so the head always counts in full.
    """
    table = spec.vocab_size * spec.hidden_size
    return spec.num_parameters - (0 if spec.tied_head else table)


def prefill_flops(spec: ModelSpec, num_tokens: int) -> int:
    """Count the matmul FLOPs of one prompt of `num_tokens`: linears, attention, one row of logits.

    Causal attention computes QKᵀ and PV for half of the token pairs: 2 · heads · head_dim · T².
    """
    linears = 2 * spec.num_gateable * num_tokens
    heads = sum(layer.num_heads * layer.head_dim for layer in spec.layers)
    attention = 2 * heads * num_tokens * num_tokens
    return linears + attention + 2 * spec.vocab_size * spec.hidden_size


def ideal_speedup(dense: ModelSpec, pruned: ModelSpec, prefill_tokens: int) -> Ideal:
    return Ideal(
        decode=decode_weights(dense) / decode_weights(pruned),
        prefill=prefill_flops(dense, prefill_tokens) / prefill_flops(pruned, prefill_tokens),
    )
