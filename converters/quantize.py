"""Rounding to int8, symmetric with one scale per output row, tensor by tensor.

Only the linears inside the blocks are quantized, after rewriting. Peak memory is the largest
tensor. The format is described in docs/format.md, "int8".
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.masked import BLOCK_VALUES, MaskedCheckpoint
from converters.rewrite import rewritten_tensors, tensor_headers
from sgate_serve.architecture.family import Family
from sgate_serve.checkpoint.int8 import INT8, SCALE, int8_weights
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import TensorHeader
from sgate_serve.errors import CheckpointError, PlanError
from sgate_serve.plan import Plan
from sgate_serve.plan.placement import pruned_spec

LARGEST = 127
# Smaller numbers lose precision in fp32, and many devices treat them as zero.
SMALLEST_SCALE = np.finfo(np.float32).tiny


def why_not_quantizable(family: Family) -> str | None:
    """Return why the matrices of a family do not fit the int8 layout, None if they do."""
    if family.is_transposed:
        return (
            f"family {family.name} stores its matrices as (in, out), and {INT8} has one scale per "
            "output row of (out, in)"
        )
    if family.mixture is not None and family.mixture.is_stacked:
        return (
            f"the stock class of family {family.name} has all experts of a layer in one tensor, "
            "which compressed-tensors does not quantize"
        )
    return None


def check_quantizable(family: Family) -> None:
    """Raise PlanError for a family whose matrices do not fit the int8 layout."""
    if (reason := why_not_quantizable(family)) is not None:
        raise PlanError(
            f"--precision {INT8}: {reason}; give fp32, fp16 or bf16, and serve it with "
            f"`-- --precision {INT8}`: its ONNX graph can be in int8"
        )


def stored_tensors(
    masked: MaskedCheckpoint, plan: Plan, is_int8: bool
) -> tuple[list[TensorHeader], Iterator[Array]]:
    """Return the headers and arrays of a folder in writing order, quantized if `is_int8`."""
    headers, arrays = tensor_headers(masked, plan), rewritten_tensors(masked, plan)
    if not is_int8:
        return headers, arrays
    weights = int8_weights(pruned_spec(plan, masked.spec))
    return list(int8_headers(headers, weights)), int8_arrays(headers, arrays, weights)


def int8_headers(
    headers: Iterable[TensorHeader], weights: frozenset[str]
) -> Iterator[TensorHeader]:
    """Yield the headers; those of `weights` as I8, each followed by the header of its scales."""
    for header in headers:
        if header.name in weights:
            yield replace(header, dtype="I8")
            name = f"{header.name.removesuffix('weight')}{SCALE}"
            yield TensorHeader(name, "F32", (header.shape[0], 1))
        else:
            yield header


def int8_arrays(
    headers: Iterable[TensorHeader], arrays: Iterable[Array], weights: frozenset[str]
) -> Iterator[Array]:
    """Yield the arrays that `int8_headers` announces, from the float arrays of `headers`."""
    for header, array in zip(headers, arrays, strict=True):
        if header.name in weights:
            yield from quantize(array, header.name)
        else:
            yield array


def quantize(weight: Array, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values [rows, columns] and scales [rows, 1]: weight ≈ values · scales.

    The error of a weight is at most half its scale. Halves round to even. Raises CheckpointError,
    naming the tensor, if a scale does not fit fp32.
    """
    values = np.empty(weight.shape, np.int8)
    scales = np.empty((len(weight), 1), np.float32)
    step = max(1, BLOCK_VALUES // weight.shape[1])
    for start in range(0, len(weight), step):
        span = slice(start, start + step)
        # In float64, a quotient of two fp32 numbers is never rounded to exactly half.
        block = weight[span].astype(np.float64)
        scales[span] = scale = row_scales(block, name)
        values[span] = np.rint(block / scale).clip(-LARGEST, LARGEST)
    return values, scales


def row_scales(block: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Return the scale [rows, 1] of each row: its largest magnitude / 127, or 1 if it is zero."""
    largest = np.abs(block).max(axis=1, keepdims=True)
    # Not `>`: a NaN must count as too large.
    if not (largest <= LARGEST * float(np.finfo(np.float32).max)).all():
        raise CheckpointError(
            f"tensor {name} holds {largest.max():.1e}, too large for int8 with an fp32 scale; "
            f"convert without --precision {INT8}"
        )
    scales: NDArray[np.float32] = np.maximum(largest / LARGEST, SMALLEST_SCALE).astype(np.float32)
    scales[largest == 0] = 1
    return scales
