"""Zero-padding of attention heads to a width that ONNX Runtime's fused rotary kernel takes.

Rotary embedding turns dimension i with dimension i + width/2. Each half of a head is therefore
padded at its own end, so every pair stays a pair; zeros turn into zeros, and zero dimensions of
query, key and value add nothing to scores or outputs. The padding is exact.
"""

import numpy as np
from numpy.typing import NDArray

from sgate_serve.tensor_files import Array

# GroupQueryAttention with do_rotary on the CPU provider: head width must be a multiple of 16.
HEAD_MULTIPLE = 16


def padded_head_dim(head_dim: int) -> int:
    return -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE


def padded_positions(num_heads: int, head_dim: int) -> NDArray[np.int64]:
    """Return where each of the [heads * head_dim] dimensions stands once heads are padded."""
    half, padded_half = head_dim // 2, padded_head_dim(head_dim) // 2
    starts = np.arange(2 * num_heads, dtype=np.int64)[:, None] * padded_half
    return (starts + np.arange(half)).reshape(-1)


def pad_head_rows(array: Array, head_dim: int) -> Array:
    """Pad a [heads * head_dim, ...] weight or bias to [heads * padded, ...]."""
    num_heads = len(array) // head_dim
    padded = np.zeros((num_heads * padded_head_dim(head_dim), *array.shape[1:]), array.dtype)
    padded[padded_positions(num_heads, head_dim)] = array
    return padded


def pad_head_columns(array: Array, head_dim: int) -> Array:
    """Pad a [out, heads * head_dim] weight to [out, heads * padded]."""
    return pad_head_rows(array.T, head_dim).T
