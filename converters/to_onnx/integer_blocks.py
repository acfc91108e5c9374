"""Rounding a matrix to integers of 8 or 4 bits, block by block, as `MatMulNBits` reads them.

A block is a fixed number of weights of one row; the last block of a row is padded with zeros. A
weight is `(q - zero) · scale`, with the scale and zero point of its block. Every block can
represent 0 exactly, so a zero row stays zero.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.masked import BLOCK_VALUES
from sgate_serve.checkpoint.tensor_files import Array

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LARGEST_OF_8_BITS = 127
# The default zero point of 8 bits; with 4 bits, every block has its own.
ZERO_OF_8_BITS = 128
LARGEST_OF_4_BITS = 15
# The ranges tried for a block of 4 bits, as fractions of the range from its smallest to its largest
# weight: clipping a few large weights makes the steps between all others finer.
RANGES = np.linspace(1.0, 0.6, 9)


@dataclass(frozen=True)
class Blocks:
    """One matrix [rows, columns] in packed blocks; with 4 bits, the first number is the low half.

    `values` [rows, blocks, block · bits / 8], `scales` [rows, blocks], and for 4 bits `zeros`
    [rows, bytes].
    """

    values: Bytes
    scales: Floats
    zeros: Bytes | None


def num_blocks(columns: int, block: int) -> int:
    return -(-columns // block)


def round_to_8_bits(weight: Array, block: int, row_scales: Array | None = None) -> Blocks:
    """Round to the nearest of 255 numbers, symmetric: a block's largest magnitude is 127 scales.

    Given `row_scales` [rows, 1], all blocks of a row have that scale: weights that were rounded
    with it before are reproduced exactly.
    """
    values, scales = _empty(weight, block)
    for span in spans(weight):
        part = blocked(weight[span], block)
        if row_scales is None:
            scales[span] = _scales(np.abs(part).max(axis=-1) / LARGEST_OF_8_BITS)
        else:
            scales[span] = row_scales[span]
        steps = np.rint(part / scales[span][..., None])
        values[span] = steps.clip(-LARGEST_OF_8_BITS, LARGEST_OF_8_BITS) + ZERO_OF_8_BITS
    return Blocks(values, scales, None)


def round_to_4_bits(weight: Array, block: int) -> Blocks:
    """Round to 16 numbers per block, evenly spaced from about its smallest to its largest weight.

    The zero point is an integer, which ONNX Runtime's integer kernel requires.
    """
    values, scales = _empty(weight, block)
    zeros = np.empty(scales.shape, np.uint8)
    for span in spans(weight):
        values[span], scales[span], zeros[span] = best_range(blocked(weight[span], block))
    return packed_4_bits(values, scales, zeros)


def packed_4_bits(values: Bytes, scales: Floats, zeros: Bytes) -> Blocks:
    """Pack values [rows, blocks, block] and zeros [rows, blocks] of 4 bits."""
    return Blocks(_packed(values), scales, _packed(_even(zeros)))


def dequantized_4_bits(blocks: Blocks, span: slice) -> Floats:
    """Return what rows of a matrix of 4 bits mean, [rows, blocks, block]."""
    assert blocks.zeros is not None
    values, scales = _unpacked(blocks.values[span]), blocks.scales[span]
    zeros = _unpacked(blocks.zeros[span])[:, : scales.shape[1]]
    steps = values.astype(np.float32) - zeros[..., None].astype(np.float32)
    return steps * scales[..., None]


def best_range(part: Floats, importance: Floats | None = None) -> tuple[Bytes, Floats, Bytes]:
    """Return the values, scales and zeros of blocks [..., block] with the least squared error.

    Squares are weighted by `importance`, [blocks of a row, block] or None for all alike.
    """
    low, high = part.min(axis=-1).clip(max=0), part.max(axis=-1).clip(min=0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for share in RANGES:
        scale = _scales((high - low) * np.float32(share / LARGEST_OF_4_BITS))
        zero = np.rint(-low * np.float32(share) / scale)
        steps = _steps(part, scale, zero) - zero[..., None]
        squares = np.square(steps * scale[..., None] - part)
        error = (squares if importance is None else squares * importance).sum(axis=-1)
        is_better = error < best
        for kept, found in ((best, error), (scales, scale), (zeros, zero)):
            kept[is_better] = found[is_better]
    return _steps(part, scales, zeros).astype(np.uint8), scales, zeros.astype(np.uint8)


def _steps(part: Floats, scale: Floats, zero: Floats) -> Floats:
    steps: Floats = np.rint(part / scale[..., None]) + zero[..., None]
    return steps.clip(0, LARGEST_OF_4_BITS)


def _scales(scales: Floats) -> Floats:
    """Set the scale of a zero block to 1, and raise tiny ones so that no quotient overflows."""
    found = np.maximum(scales, np.finfo(np.float32).tiny)
    found[scales == 0] = 1
    return found


def spans(weight: Array) -> list[slice]:
    """Return spans of rows, small enough to bound the memory for fp32 copies."""
    step = max(1, BLOCK_VALUES // weight.shape[1])
    return [slice(start, start + step) for start in range(0, len(weight), step)]


def _empty(weight: Array, block: int) -> tuple[Bytes, Floats]:
    blocks = num_blocks(weight.shape[1], block)
    shape = (len(weight), blocks, block)
    return np.empty(shape, np.uint8), np.empty(shape[:2], np.float32)


def blocked(rows: Array, block: int) -> Floats:
    """Return [rows, blocks, block] in fp32, the last block of a row padded with zeros."""
    columns = rows.shape[1]
    blocks = num_blocks(columns, block)
    padded = np.zeros((len(rows), blocks * block), np.float32)
    padded[:, :columns] = rows
    return padded.reshape(len(rows), blocks, block)


def _even(zeros: Bytes) -> Bytes:
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))


def _packed(values: Bytes) -> Bytes:
    """Pack two numbers of 4 bits into each byte, along the last axis."""
    packed: Bytes = values[..., ::2] | np.left_shift(values[..., 1::2], 4, dtype=np.uint8)
    return packed


def _unpacked(packed: Bytes) -> Bytes:
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)
