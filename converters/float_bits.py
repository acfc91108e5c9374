"""Tests on floats by their bits, without arithmetic and without large temporary arrays.

numpy compares bfloat16 one value at a time, but vectorizes over integers of the same width.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint.tensor_files import Array

# Small enough that a block is still in the CPU cache when it is read a second time.
BLOCK_VALUES = 2**18


def is_finite(values: Array) -> bool:
    """Say whether every float is finite.

    NaN and infinity have all exponent bits set (IEEE 754): read as integers of the same width, they
    are at least +inf if signed, or at least -inf if unsigned.
    """
    infinities = np.array([np.inf, -np.inf]).astype(values.dtype)
    positive, negative = _bits(infinities, "i")[0], _bits(infinities, "u")[1]
    flat = values.reshape(-1)
    blocks = (flat[start : start + BLOCK_VALUES] for start in range(0, flat.size, BLOCK_VALUES))
    return all(
        _bits(block, "i").max() < positive and _bits(block, "u").max() < negative
        for block in blocks
    )


def zero_lines(values: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Return which rows and columns of a matrix are zero, and how many of its values are.

    One pass, in blocks that stay in the CPU cache.
    """
    bits = _bits(np.ascontiguousarray(values), "u")
    rows, columns = np.ones(len(bits), np.bool_), np.zeros(bits.shape[1], bits.dtype)
    num_zero, step = 0, max(1, BLOCK_VALUES // max(1, bits.shape[1]))
    for start in range(0, len(bits), step):
        magnitudes = bits[start : start + step] << 1
        rows[start : start + step] = np.bitwise_or.reduce(magnitudes, axis=1) == 0
        columns |= np.bitwise_or.reduce(magnitudes, axis=0)
        num_zero += magnitudes.size - int(np.count_nonzero(magnitudes))
    return rows, columns == 0, num_zero


def is_zero_along(values: Array, axis: int) -> NDArray[np.bool_]:
    """Return which slices along `axis` are all zero; -0.0 counts as zero."""
    united = np.bitwise_or.reduce(_bits(values, "u"), axis=axis)
    return np.asarray(united << 1 == 0)


def is_zero(values: Array) -> NDArray[np.bool_]:
    """Return which values are zero; -0.0 counts as zero."""
    return np.asarray(_bits(values, "u") << 1 == 0)


def _bits(values: Array, kind: str) -> NDArray[Any]:
    """View floats as integers of the same width, signed ("i") or unsigned ("u")."""
    return values.view(np.dtype(f"{kind}{values.dtype.itemsize}"))
