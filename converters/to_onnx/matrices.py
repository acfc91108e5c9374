"""Matrices [out, in] in the graph's precision: their initializers, products and row lookups.

Integer products are `MatMulNBits`, which rounds the activations of each token separately, in
blocks, or `MatMulIntegerToFloat` with one scale for each token: in encoders, and in most linears
of decoders on some CPUs. An operator with one scale for all tokens would let requests affect each
other. A tied head has the embedding's name, and so its initializers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from converters.float_bits import is_finite
from converters.quantize import quantize
from converters.to_onnx.error_feedback import round_by_inputs
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.integer_blocks import (
    LARGEST_OF_8_BITS,
    ZERO_OF_8_BITS,
    Blocks,
    Floats,
    num_blocks,
    round_to_4_bits,
    round_to_8_bits,
)
from converters.to_onnx.linears import Matrix
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.errors import CheckpointError
from sgate_serve.onnx_format.names import MICROSOFT
from sgate_serve.onnx_format.precision import IN_FLOATS, Precision

Rounded = TypeVar("Rounded")
# By the name of a matrix: Σ x xᵀ [in, in] over the inputs x that it multiplies.
Moments = Callable[[str], Floats]

# The parts of a matrix of 4 bits; only such a matrix has zeros.
PARTS, ZEROS = ("values", "scales", "zeros"), ".zeros"
# Activations are rounded to int8 in the blocks of the weights.
INT8_COMPUTE = 4
UINT8, INT8, FLOAT = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.FLOAT
# Far below the scale of any token, and large enough to avoid a division by zero.
LEAST_SCALE = 1e-30


def matrices_of_4_bits(graph: ir.Model) -> list[str]:
    """Return the names of the matrices that a graph has in 4 bits."""
    weights = graph.graph.initializers
    return [name.removesuffix(ZEROS) for name in weights if name.endswith(ZEROS)]


class Matrices:
    """The matrices of one graph; with `moments`, 4 bits are rounded for what they multiply."""

    def __init__(
        self, graph: GraphBuilder, precision: Precision, moments: Moments | None = None
    ) -> None:
        self._graph, self._precision, self._moments = graph, precision, moments
        self._last: tuple[Matrix, Any] | None = None

    def multiply(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return x Wᵀ + b, [..., out]."""
        if not IN_FLOATS.isdisjoint(matrix.roles):
            product = self._multiply_floats(matrix, x)
        elif self._is_in_rows(matrix):
            product = self._multiply_rows(matrix, x)
        elif self._precision.block is not None:
            return self._multiply_blocks(matrix, x, bias)
        else:
            product = self._multiply_floats(matrix, x)
        return product if bias is None else self._graph.node("Add", [product, bias])[0]

    def multiply_floats(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        """Return x Wᵀ in floats, whatever the precision: a choice must not be rounded."""
        return self._multiply_floats(matrix, x)

    def rows(self, table: Matrix, ids: ir.Value) -> ir.Value:
        """Return the rows [t, in] of a matrix for ids [t]."""
        if self._precision.block is None:
            return self._graph.node("Gather", [self._floats(table), ids], {"axis": 0})[0]
        assert self._bits(table) == 8, "tables have 8 bits, with the default zero point"
        graph, block = self._graph, self._precision.block
        values, scales, _ = self._blocks(table, block)
        last = graph.constant("blocks.column", np.array([0, 0, 1], np.int64))
        (column,) = graph.node("Reshape", [scales, last])
        attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
        (found,) = graph.node(
            "GatherBlockQuantized", [values, ids, column], attributes, domain=MICROSOFT
        )
        return self._joined(found, table.shape[1], block)

    def _joined(self, blocks: ir.Value, columns: int, block: int) -> ir.Value:
        """Reshape [t, blocks, block] to [t, columns], without the padding of the last block."""
        graph, width = self._graph, num_blocks(columns, block) * block
        shape = graph.constant(f"blocks.{width}", np.array([-1, width], np.int64))
        (joined,) = graph.node("Reshape", [blocks, shape])
        if width == columns:
            return joined
        ends = [
            graph.constant(f"blocks.{name}", np.array([value], np.int64))
            for name, value in (("start", 0), (f"end.{columns}", columns), ("axis", 1))
        ]
        return graph.node("Slice", [joined, *ends])[0]

    def _multiply_blocks(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return x Wᵀ + b with one scale for each block of a row, of W and of each token."""
        (rows, columns), block = matrix.shape, self._block(matrix)
        attributes = {
            "N": rows,
            "K": columns,
            "bits": self._bits(matrix),
            "block_size": block,
            "accuracy_level": INT8_COMPUTE,
        }
        values, scales, zeros = self._blocks(matrix, block)
        inputs = [x, values, scales, zeros, None, bias]
        return self._graph.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)[0]

    def _is_in_rows(self, matrix: Matrix) -> bool:
        """Return whether a matrix of 8 bits has one scale for each row instead of blocks.

        A decoder has blocks where a few inputs are far larger than the others, for which one scale
        for all of a token would be coarse: so are channels of the stream that are not rescaled,
        and units of an MLP, other ones for each token.
        """
        if self._precision.block is None:
            return self._bits(matrix) == 8
        return self._precision.in_rows and matrix.has_even_inputs and not matrix.is_outer

    def _multiply_rows(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        """Return x Wᵀ in int8, with one scale for each row of W and one for each token.

        Sums of integers are exact, so the result for a token does not depend on the other tokens.
        The engine sees to CPUs that would not add exactly.
        """
        graph, (rows, columns), name = self._graph, matrix.shape, matrix.name
        values = graph.weight(
            f"{name}.values", (columns, rows), lambda: self._rounded_rows(matrix)[0].T.copy(), INT8
        )
        scales = graph.weight(
            f"{name}.scales", (rows,), lambda: self._rounded_rows(matrix)[1][:, 0], FLOAT
        )
        one = graph.constant("rows.one", np.array(1, np.float32))
        zero = graph.constant("rows.zero", np.array(ZERO_OF_8_BITS, np.uint8))
        token_scales = self._token_scales(x)
        (steps,) = graph.node("Div", [x, token_scales])
        (rounded,) = graph.node("QuantizeLinear", [steps, one, zero])
        inputs = [rounded, values, one, scales, zero]
        (product,) = graph.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
        return graph.node("Mul", [product, token_scales])[0]

    def _token_scales(self, x: ir.Value) -> ir.Value:
        """Return the scale [t, 1] of each token, largest magnitude / 127, at least LEAST_SCALE."""
        graph = self._graph
        (magnitudes,) = graph.node("Abs", [x])
        last = graph.constant("rows.axis", np.array([-1], np.int64))
        (largest,) = graph.node("ReduceMax", [magnitudes, last], {"keepdims": 1})
        share = graph.constant("rows.share", np.array(1 / LARGEST_OF_8_BITS, np.float32))
        (scales,) = graph.node("Mul", [largest, share])
        least = graph.constant("rows.least", np.array(LEAST_SCALE, np.float32))
        return graph.node("Max", [scales, least])[0]

    def _rounded_rows(self, matrix: Matrix) -> tuple[Array, Array]:
        """Round a matrix to int8 values and scales [rows, 1], as in an int8 folder."""

        def rounded(weight: Array) -> tuple[Array, Array]:
            if matrix.scales is None:
                return quantize(weight, matrix.name)
            scales = matrix.scales()
            return np.rint(weight / scales).astype(np.int8), scales

        return self._once(matrix, rounded)

    def _multiply_floats(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        # FusedMatMul takes [out, in] as stored, so a tied head needs no transposed copy. It is
        # packed when the model is loaded, and is then as fast as MatMul.
        inputs = [x, self._floats(matrix)]
        return self._graph.node("FusedMatMul", inputs, {"transB": 1}, domain=MICROSOFT)[0]

    def _floats(self, matrix: Matrix) -> ir.Value:
        return self._graph.weight(f"{matrix.name}.weight", matrix.shape, matrix.weight)

    def _bits(self, matrix: Matrix) -> int:
        is_finer = matrix.is_outer or not set(matrix.roles).isdisjoint(self._precision.finer)
        return self._precision.outer_bits if is_finer else self._precision.bits

    def _block(self, matrix: Matrix) -> int:
        """Return how many weights share a scale: in experts so few that products stay exact.

        How many tokens an expert multiplies follows from the tokens, not from the call.
        """
        held = self._precision.of_experts if matrix.of_expert else self._precision
        assert held.block is not None, "floats have no blocks"
        return held.block

    def _blocks(self, matrix: Matrix, block: int) -> list[ir.Value | None]:
        """Return values, scales and, for 4 bits, zeros as initializers."""
        rows, blocks = matrix.shape[0], num_blocks(matrix.shape[1], block)
        bits, name = self._bits(matrix), matrix.name
        size = block * bits // 8
        shapes = {"values": (rows, blocks, size), "scales": (rows, blocks)}
        if bits == 4:
            shapes["zeros"] = (rows, -(-blocks // 2))

        def read(part: str) -> Array:
            array: Array = getattr(self._rounded(matrix, block), part)
            return array

        parts: dict[str, ir.Value | None] = {
            part: self._graph.weight(
                f"{name}.{part}", shape, partial(read, part), FLOAT if part == "scales" else UINT8
            )
            for part, shape in shapes.items()
        }
        return [parts["values"], parts["scales"], parts.get("zeros")]

    def _rounded(self, matrix: Matrix, block: int) -> Blocks:
        def rounded(weight: Array) -> Blocks:
            if self._bits(matrix) == 4 and self._moments is not None:
                return round_by_inputs(weight, block, self._moments(matrix.name))
            if self._bits(matrix) == 4:
                return round_to_4_bits(weight, block)
            scales = None if matrix.scales is None else matrix.scales()
            return round_to_8_bits(weight, block, scales)

        return self._once(matrix, rounded)

    def _once(self, matrix: Matrix, rounded: Callable[[Array], Rounded]) -> Rounded:
        """Round a matrix, or return the last result: its parts are written one after another."""
        if self._last is None or self._last[0] is not matrix:
            self._last = None  # freed before the next is read, since both may be large
            weight = matrix.weight()
            if not is_finite(weight):
                raise CheckpointError(
                    f"the weights of {matrix.name} hold NaN or infinite values, which integers "
                    "cannot; repair the checkpoint"
                )
            self._last = (matrix, rounded(weight))
        found: Rounded = self._last[1]
        return found
