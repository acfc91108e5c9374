"""Quantizers that round a matrix to 4 bits in blocks, as fp32 values: ours and alternatives."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.integer_blocks import LARGEST_OF_4_BITS, best_range

Floats = NDArray[np.float32]
Quantizer = Callable[[Floats, int], Floats]


def whole_range(weight: Floats, block: int) -> Floats:
    """Round to the nearest of 16 even steps from a block's smallest to its largest weight."""
    blocks = _blocked(weight, block)
    low, high = blocks.min(1, keepdims=True).clip(max=0), blocks.max(1, keepdims=True).clip(min=0)
    scale = (high - low) / LARGEST_OF_4_BITS
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(blocks / scale) + zero, 0, LARGEST_OF_4_BITS) - zero
    return _rows(steps * scale, weight)


def symmetric(weight: Floats, block: int) -> Floats:
    """Round to -8 … 7 steps of a block's largest magnitude / 8, which needs no stored zeros."""
    blocks = _blocked(weight, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    scale[scale == 0] = 1
    steps: Floats = np.rint(blocks / scale).clip(-8, 7)
    return _rows(steps * scale, weight)


def k_quant(weight: Floats, block: int) -> Floats:
    """Round as ONNX Runtime's k_quant does, after llama.cpp: a least-squares fit of the range."""
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    with np.errstate(invalid="ignore"):
        steps, scale, zero = quant_tensor_k_quant_cpu(_blocked(weight, block), 4, block)
    return _rows((steps - zero) * scale, weight)


def half_quadratic(weight: Floats, block: int) -> Floats:
    """Round as HQQ does (https://mobiusml.github.io/hqq_blog): zeros are floats.

    `MatMulNBits` then has no integer kernel.
    """
    blocks, beta = _blocked(weight, block), 10.0
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    steps_per_unit = LARGEST_OF_4_BITS / np.maximum(high - low, 1e-12)
    zero = -low * steps_per_unit
    for _ in range(20):
        steps = np.clip(np.rint(blocks * steps_per_unit + zero), 0, LARGEST_OF_4_BITS)
        error = blocks - (steps - zero) / steps_per_unit
        size = np.abs(error)
        shrunk = np.sign(error) * np.maximum(size - (size + 1e-12) ** -0.3 / beta, 0)
        zero = (steps - (blocks - shrunk) * steps_per_unit).mean(1, keepdims=True)
        beta *= 1.01
    steps = np.clip(np.rint(blocks * steps_per_unit + zero), 0, LARGEST_OF_4_BITS)
    return _rows((steps - zero) / steps_per_unit, weight)


def least_error(weight: Floats, block: int) -> Floats:
    """Round as the int4 graph does."""
    values, scales, zeros = best_range(_blocked(weight, block))
    steps = values.astype(np.float32) - zeros[:, None]
    return _rows(steps * scales[:, None], weight)


QUANTIZERS: Mapping[str, Quantizer] = {
    "least_error": least_error,
    "k_quant": k_quant,
    "whole_range": whole_range,
    "symmetric": symmetric,
    "half_quadratic": half_quadratic,
}


def _blocked(weight: Floats, block: int) -> Floats:
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % block))).reshape(-1, block)


def _rows(blocks: Floats, weight: Floats) -> Floats:
    rows, columns = weight.shape
    return blocks.astype(np.float32).reshape(rows, -1)[:, :columns]
