"""Zero-padding of attention heads to a width that ONNX Runtime's fused rotary kernel takes.

Rotary embedding turns dimension i with dimension i + width/2. Each half of a head is therefore
padded at its own end, so every pair stays a pair; zeros turn into zeros, and zero dimensions of
query, key and value add nothing to scores or outputs. The padding is exact.
"""

import numpy as np

from sgate_serve.checkpoint import Array

# GroupQueryAttention with do_rotary on the CPU provider: head width must be a multiple of 16.
HEAD_MULTIPLE = 16


def padded_head_dim(head_dim: int) -> int:
    return -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE


def pad_head_rows(array: Array, head_dim: int) -> Array:
    """Pad a [heads * head_dim, ...] weight or bias to [heads * padded, ...]."""
    half = head_dim // 2
    halves = array.reshape(-1, half, *array.shape[1:])
    padding = padded_head_dim(head_dim) // 2 - half
    padded = np.pad(halves, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(-1, *array.shape[1:])


def pad_head_columns(array: Array, head_dim: int) -> Array:
    """Pad a [out, heads * head_dim] weight to [out, heads * padded]."""
    half = head_dim // 2
    padding = padded_head_dim(head_dim) // 2 - half
    halves = array.reshape(array.shape[0], -1, half)
    return np.pad(halves, [(0, 0), (0, 0), (0, padding)]).reshape(array.shape[0], -1)
