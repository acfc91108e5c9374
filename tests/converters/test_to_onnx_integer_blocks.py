"""Rounding to blocks: error bounds, zeros, odd sizes, and that the kernel means the same."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from converters.quantize import quantize
from converters.to_onnx.error_feedback import round_by_inputs
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.integer_blocks import (
    dequantized_4_bits,
    round_to_4_bits,
    round_to_8_bits,
)
from converters.to_onnx.linears import Matrix
from converters.to_onnx.matrices import Matrices
from sgate_serve.checkpoint.int8 import dequantize
from sgate_serve.onnx_format.precision import PRECISIONS
from tests.converters.integer_blocks import dequantized

Floats = NDArray[np.float32]
QUANTIZED = ["int8", "int4"]


def normal(rows: int, columns: int, seed: int = 0) -> Floats:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.1, (rows, columns)).astype(np.float32)


def with_outliers(weight: Floats) -> Floats:
    out = weight.copy()
    out[:, ::50] *= 10
    return out


@pytest.mark.parametrize("block", [32, 64, 128])
def test_8_bits_are_off_by_half_a_scale_at_most(block: int) -> None:
    weight = with_outliers(normal(113, 97))
    blocks = round_to_8_bits(weight, block)
    assert blocks.values.shape == (113, -(-97 // block), block) and blocks.zeros is None
    scales = np.repeat(blocks.scales, block, axis=1)[:, :97]
    assert (np.abs(dequantized(blocks, 97) - weight) <= scales / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("block", [32, 64, 128])
def test_4_bits_are_better_than_16_even_steps_over_the_whole_range(block: int) -> None:
    for weight in (normal(113, 97), with_outliers(normal(113, 97)), np.abs(normal(30, 256))):
        found = dequantized(round_to_4_bits(weight, block), weight.shape[1])
        error = np.square(found - weight).sum()
        assert error < 0.99 * np.square(_over_whole_range(weight, block) - weight).sum()


def _over_whole_range(weight: Floats, block: int) -> Floats:
    """Return what plain rounding makes of the weights, block by block."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(-1, block)
    low, high = padded.min(1, keepdims=True).clip(max=0), padded.max(1, keepdims=True).clip(min=0)
    scale = (high - low) / np.float32(15)
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(padded / scale) + zero, 0, 15) - zero
    found: Floats = (steps * scale).astype(np.float32)
    return found.reshape(rows, -1)[:, :columns]


def test_zeros_stay_zeros_and_numbers_may_be_tiny_or_alike() -> None:
    weight = normal(9, 130)
    weight[3], weight[4, :128] = 0, 0
    weight[5], weight[6], weight[7] = 0.3, 1e-42, -0.3
    for blocks in (round_to_8_bits(weight, 64), round_to_4_bits(weight, 64)):
        found = dequantized(blocks, 130)
        np.testing.assert_array_equal(found[3], 0)
        np.testing.assert_array_equal(found[4, :128], 0)
        np.testing.assert_allclose(found[5], 0.3, rtol=1e-6)
        np.testing.assert_allclose(found[7], -0.3, rtol=1e-6)
        assert np.isfinite(found).all() and np.abs(found[6]).max() <= 1e-40


@pytest.mark.parametrize("block", [32, 128])
def test_rounding_by_inputs_keeps_products_better(block: int) -> None:
    """Of inputs that are alike and of uneven size; zero rows and what reads zeros stay as well."""
    weight, generator = with_outliers(normal(70, 200)), np.random.default_rng(2)
    weight[3] = 0
    mixed = generator.normal(0, 1, (500, 40)) @ generator.normal(0, 1, (40, 200))
    inputs = (mixed * np.exp(generator.normal(0, 1, 200))).astype(np.float32)
    inputs[:, 150:] = 0
    plain = dequantized(round_to_4_bits(weight, block), 200)
    found = dequantized(round_by_inputs(weight, block, inputs.T @ inputs), 200)
    errors = [np.square(inputs @ (each - weight).T).sum() for each in (found, plain)]
    assert errors[0] < 0.2 * errors[1]
    assert not found[3].any()
    unread = weight[:, 150:]
    assert np.linalg.norm(found[:, 150:] - unread) < 0.5 * np.linalg.norm(unread)


def test_8_bits_find_what_was_rounded_by_rows_again() -> None:
    weight = with_outliers(normal(40, 97))
    weight[7] = 0
    values, scales = quantize(weight, "w")
    blocks = round_to_8_bits(dequantize(values, scales), 64, scales)
    stored = blocks.values.reshape(40, -1)[:, :97].astype(np.int64) - 128
    np.testing.assert_array_equal(stored, values)
    np.testing.assert_array_equal(blocks.scales, np.repeat(scales, 2, axis=1))


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize(("rows", "columns"), [(97, 113), (113, 97), (1, 1), (64, 896)])
@pytest.mark.parametrize("is_outer", [False, True])
def test_the_kernel_means_the_same_numbers(
    precision: str, rows: int, columns: int, is_outer: bool
) -> None:
    """Also with a bias; rows of a table are exact, products but for the rounding of inputs."""
    weight, own = normal(rows, columns), PRECISIONS[precision]
    assert own.block is not None
    is_8_bit = is_outer or precision == "int8"
    blocks = (round_to_8_bits if is_8_bit else round_to_4_bits)(weight, own.block)
    meant = dequantized(blocks, columns)
    graph = GraphBuilder()
    x = graph.input("x", ir.DataType.FLOAT, ["t", columns])
    bias = graph.weight("bias", (rows,), lambda: np.arange(rows, dtype=np.float32))
    matrices = Matrices(graph, own)
    matrix = Matrix("w", (rows, columns), lambda: weight, is_outer=is_outer)
    graph.output(matrices.multiply(matrix, x, bias), "y", ["t", rows])
    feeds = {"x": normal(7, columns, seed=1)}
    if is_outer:
        ids = graph.input("ids", ir.DataType.INT64, ["t"])
        graph.output(matrices.rows(matrix, ids), "found", ["t", columns])
        feeds["ids"] = np.array([0, rows - 1, rows // 2, 0, 0, 0, 0])
    model = ir.to_proto(graph.model({})).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    y, *found = session.run(None, feeds)
    expected = feeds["x"] @ meant.T
    error = np.abs(y - np.arange(rows) - expected).max()
    assert error <= 0.02 * max(np.abs(expected).max(), 0.1)
    if is_outer:
        np.testing.assert_array_equal(found[0], meant[feeds["ids"]])


def test_moments_that_rounding_made_indefinite_are_damped_more() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 40)).astype(np.float32)
    moments = np.outer(np.ones(40), np.ones(40)).astype(np.float32)
    moments[0, 1] = moments[1, 0] = 1.5
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(moments + 0.01 * np.eye(40))
    blocks = round_by_inputs(weight, 16, moments)
    error = dequantized_4_bits(blocks, slice(None)).reshape(5, -1)[:, :40] - weight
    assert np.abs(error).max() < np.abs(weight).max() / 2
