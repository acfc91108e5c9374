"""The int8 quantizer: its bounds for any matrix, and what of a model it leaves alone."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from converters.quantize import LARGEST, SMALLEST_SCALE, int8_arrays, int8_headers, quantize
from sgate_serve.checkpoint.int8 import dequantize
from sgate_serve.checkpoint.writer import TensorHeader
from sgate_serve.errors import CheckpointError

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
MATRICES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-(2.0**15), 2.0**15, width=32),
)


@settings(max_examples=200, deadline=None)
@given(matrix=MATRICES, dtype=st.sampled_from(DTYPES))
def test_no_weight_is_off_by_more_than_half_its_scale(
    matrix: NDArray[np.float32], dtype: Any
) -> None:
    weight = matrix.astype(dtype)
    values, scales = quantize(weight, "w")
    assert (values.dtype, scales.dtype) == (np.dtype(np.int8), np.dtype(np.float32))
    assert (values.shape, scales.shape) == (weight.shape, (len(weight), 1))
    assert np.abs(values.astype(int)).max() <= LARGEST
    exact, wide = weight.astype(np.float64), scales.astype(np.float64)
    assert (np.abs(exact - wide * values) <= wide / 2).all()
    largest = np.abs(exact).max(axis=1, keepdims=True)
    expected = np.maximum(largest / 127, SMALLEST_SCALE).astype(np.float32)
    np.testing.assert_array_equal(scales, np.where(largest == 0, 1, expected))
    # Whatever has a scale above the smallest fills the range.
    fills = np.abs(values.astype(int)).max(axis=1, keepdims=True) == LARGEST
    assert (fills | (expected == SMALLEST_SCALE)).all()


@settings(max_examples=50, deadline=None)
@given(matrix=MATRICES)
def test_what_was_int8_already_comes_back(matrix: NDArray[np.float32]) -> None:
    values, scales = quantize(matrix, "w")
    again, _ = quantize(dequantize(values, scales), "w")
    np.testing.assert_array_equal(again, values)


def test_rows_of_zeros_have_scale_one_and_halves_round_to_even() -> None:
    weight = np.array([[0.0, -0.0, 0.0], [127.0, 2.5, -3.5], [0.5, -1.5, -127.0]], np.float32)
    values, scales = quantize(weight, "w")
    assert scales[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert values.tolist() == [[0, 0, 0], [127, 2, -4], [0, -2, -127]]


def test_subnormal_weights_have_the_smallest_normal_scale() -> None:
    tiny = np.array([[1e-45, 0.0], [2.5e-43, -1e-44]], np.float32)
    values, scales = quantize(tiny, "w")
    assert (scales == SMALLEST_SCALE).all() and not values.any()


def test_rows_are_independent_of_the_blocks_they_are_computed_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = np.random.default_rng(0).standard_normal((11, 7)).astype(np.float32)
    whole = quantize(weight, "w")
    monkeypatch.setattr("converters.quantize.BLOCK_VALUES", 15)
    for found, expected in zip(quantize(weight, "w"), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_weights_beyond_an_fp32_scale_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tensor a\.weight holds 1.0e\+300, too large for"):
        quantize(np.array([[1.0, -1e300]]), "a.weight")
    with pytest.raises(CheckpointError, match=r"tensor a\.weight holds nan, too large for"):
        quantize(np.array([[1.0, np.nan]]), "a.weight")


def test_only_the_named_weights_change_and_their_scales_follow_them() -> None:
    weight = np.array([[127.0, 1.0]], ml_dtypes.bfloat16)
    bias = np.ones(1, ml_dtypes.bfloat16)
    headers = [TensorHeader("a.weight", "BF16", (1, 2)), TensorHeader("a.bias", "BF16", (1,))]
    weights = frozenset({"a.weight"})
    assert list(int8_headers(headers, weights)) == [
        TensorHeader("a.weight", "I8", (1, 2)),
        TensorHeader("a.weight_scale", "F32", (1, 1)),
        TensorHeader("a.bias", "BF16", (1,)),
    ]
    values, scales, same = int8_arrays(headers, [weight, bias], weights)
    assert (values.tolist(), scales.tolist()) == ([[127, 1]], [[1.0]])
    assert same is bias
