"""Rounding to 4 bits with the least error of a matrix's products, given what it multiplies.

Columns are rounded one by one, those with the largest inputs first, and the columns that follow
make up for the error (GPTQ, https://arxiv.org/abs/2210.17323). Ranges are chosen before, for the
least error of weights times inputs.
"""

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.integer_blocks import (
    LARGEST_OF_4_BITS,
    Blocks,
    Bytes,
    Floats,
    best_range,
    blocked,
    packed_4_bits,
    spans,
)
from sgate_serve.checkpoint.tensor_files import Array

# Of the mean moment, added to each: keeps the fit to a short text from inverting noise.
DAMPING = 0.01
# Columns whose errors reach the later columns in one product.
BATCH = 64


def round_by_inputs(weight: Array, block: int, moments: Floats) -> Blocks:
    """Round a matrix [out, in] whose inputs x have the moments Σ x xᵀ [in, in].

    Zero rows, and columns that multiply nothing but zeros, are rounded as without inputs.
    """
    own, order, factor = _ordered_factor(moments.astype(np.float64))
    importance = blocked(own[None].astype(np.float32), block)
    found = [_rounded(weight[span], importance, order, factor) for span in spans(weight)]
    values, scales, zeros = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return packed_4_bits(values, scales, zeros)


def _ordered_factor(
    moments: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], Floats]:
    """Return the damped diagonal, its order from the largest, and the factor in that order.

    Sums in fp32 may be indefinite where inputs are nearly alike: then the damping grows.
    """
    diagonal, damping = moments.diagonal().copy(), DAMPING
    while True:
        own = diagonal + (damping * diagonal.mean() or 1)
        damped = moments.copy()
        np.fill_diagonal(damped, own)
        order = np.argsort(-own, kind="stable")
        try:
            return own, order, _inverse_factor(damped[np.ix_(order, order)])
        except np.linalg.LinAlgError:
            # A dominant diagonal is positive definite, so this ends, but for values that are none.
            if not np.isfinite(moments).all():
                raise
            damping *= 10


def _inverse_factor(matrix: NDArray[np.float64]) -> Floats:
    """Return the upper triangular U with Uᵀ U = the inverse."""
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    return np.ascontiguousarray(upper, np.float32)


def _rounded(
    rows: Array, importance: Floats, order: NDArray[np.int64], factor: Floats
) -> tuple[Bytes, Floats, Bytes]:
    """Return values [rows, blocks, block], scales and zeros [rows, blocks]."""
    block = importance.shape[-1]
    values, scales, zeros = best_range(blocked(rows, block), importance)
    steps = values.reshape(len(rows), -1)
    # Columns come first here, as one at a time is rounded.
    left = np.ascontiguousarray(rows.T[order], np.float32)
    for start in range(0, len(order), BATCH):
        end = min(start + BATCH, len(order))
        errors = np.empty((end - start, len(rows)), np.float32)
        for column in range(start, end):
            place = order[column]
            scale, zero = scales[:, place // block], zeros[:, place // block].astype(np.float32)
            found = (np.rint(left[column] / scale) + zero).clip(0, LARGEST_OF_4_BITS)
            steps[:, place] = found
            error = (left[column] - (found - zero) * scale) / factor[column, column]
            left[column:end] -= factor[column, column:end, None] * error
            errors[column - start] = error
        left[end:] -= factor[start:end, end:].T @ errors
    return values, scales, zeros
