"""Rounding a matrix to integers of 8 or 4 bits, as `MatMulNBits` reads them: block by block.

A block is so many weights of one row; the last one of a row is filled up with zeros. A weight is
`(q - zero) · scale` with the scale and the zero of its block. Zero is always among the numbers that
a block has, so a row of zeros stays one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.masked import BLOCK_VALUES
from sgate_serve.checkpoint.tensor_files import Array

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LARGEST_OF_8_BITS = 127
# What 8 bits mean by default; 4 bits have a zero of their own in every block.
ZERO_OF_8_BITS = 128
LARGEST_OF_4_BITS = 15
# The ranges that are tried for a block of 4 bits, as shares of the one from its smallest to its
# largest weight: cutting off a few large weights makes all others finer.
RANGES = np.linspace(1.0, 0.6, 9)


@dataclass(frozen=True)
class Blocks:
    """One matrix [rows, columns] in blocks, packed; in a byte of 4 bits the first one is lowest.

    `values` [rows, blocks, block · bits / 8], `scales` [rows, blocks], and of 4 bits `zeros`
    [rows, bytes].
    """

    values: Bytes
    scales: Floats
    zeros: Bytes | None


def num_blocks(columns: int, block: int) -> int:
    return -(-columns // block)


def round_to_8_bits(weight: Array, block: int, row_scales: Array | None = None) -> Blocks:
    """Round to the nearest of 255 numbers, symmetric: a block's largest magnitude is 127 scales.

    Given `row_scales` [rows, 1], all blocks of a row have that scale: what was rounded to it
    before is found again exactly.
    """
    values, scales = _empty(weight, block)
    for span in _spans(weight):
        part = _blocked(weight[span], block)
        if row_scales is None:
            scales[span] = _scales(np.abs(part).max(axis=-1) / LARGEST_OF_8_BITS)
        else:
            scales[span] = row_scales[span]
        steps = np.rint(part / scales[span][..., None])
        values[span] = steps.clip(-LARGEST_OF_8_BITS, LARGEST_OF_8_BITS) + ZERO_OF_8_BITS
    return Blocks(values, scales, None)


def round_to_4_bits(weight: Array, block: int) -> Blocks:
    """Round to 16 numbers a block, evenly spaced from about its smallest to its largest weight.

    The zero is one of them, an integer, which keeps ONNX Runtime's integer kernel.
    """
    values, scales = _empty(weight, block)
    zeros = np.empty(scales.shape, np.uint8)
    for span in _spans(weight):
        values[span], scales[span], zeros[span] = best_range(_blocked(weight[span], block))
    return Blocks(_packed(values), scales, _packed(_even(zeros)))


def best_range(part: Floats) -> tuple[Bytes, Floats, Bytes]:
    """Return values, scales and zeros of blocks [..., block] with the least squared error."""
    low, high = part.min(axis=-1).clip(max=0), part.max(axis=-1).clip(min=0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for share in RANGES:
        scale = _scales((high - low) * np.float32(share / LARGEST_OF_4_BITS))
        zero = np.rint(-low * np.float32(share) / scale)
        steps = _steps(part, scale, zero) - zero[..., None]
        error = np.square(steps * scale[..., None] - part).sum(axis=-1)
        is_better = error < best
        for kept, found in ((best, error), (scales, scale), (zeros, zero)):
            kept[is_better] = found[is_better]
    return _steps(part, scales, zeros).astype(np.uint8), scales, zeros.astype(np.uint8)


def _steps(part: Floats, scale: Floats, zero: Floats) -> Floats:
    steps: Floats = np.rint(part / scale[..., None]) + zero[..., None]
    return steps.clip(0, LARGEST_OF_4_BITS)


def _scales(scales: Floats) -> Floats:
    """Return scales with 1 for blocks of zeros, and none so small that a quotient overflows."""
    found = np.maximum(scales, np.finfo(np.float32).tiny)
    found[scales == 0] = 1
    return found


def _spans(weight: Array) -> list[slice]:
    """Return spans of rows that together bound what is held in floats at once."""
    step = max(1, BLOCK_VALUES // weight.shape[1])
    return [slice(start, start + step) for start in range(0, len(weight), step)]


def _empty(weight: Array, block: int) -> tuple[Bytes, Floats]:
    blocks = num_blocks(weight.shape[1], block)
    shape = (len(weight), blocks, block)
    return np.empty(shape, np.uint8), np.empty(shape[:2], np.float32)


def _blocked(rows: Array, block: int) -> Floats:
    """Return [rows, blocks, block] in fp32, the last block of a row filled up with zeros."""
    columns = rows.shape[1]
    blocks = num_blocks(columns, block)
    padded = np.zeros((len(rows), blocks * block), np.float32)
    padded[:, :columns] = rows
    return padded.reshape(len(rows), blocks, block)


def _even(zeros: Bytes) -> Bytes:
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))


def _packed(values: Bytes) -> Bytes:
    """Return two numbers of 4 bits a byte, along the last axis."""
    packed: Bytes = values[..., ::2] | np.left_shift(values[..., 1::2], 4, dtype=np.uint8)
    return packed
