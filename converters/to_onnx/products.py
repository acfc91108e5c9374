"""Multiplication of tokens [t, in] by a `Linear`: matrix products, index work and bias."""

import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.indices import IndexedAxis
from converters.to_onnx.linears import Linear, Matrix
from converters.to_onnx.matrices import Matrices, Moments
from sgate_serve.onnx_format.precision import Precision


class Products:
    """The linears and tables of one graph, in its precision."""

    def __init__(
        self,
        graph: GraphBuilder,
        input_ids: ir.Value,
        precision: Precision,
        moments: Moments | None = None,
    ) -> None:
        self._graph = graph
        self._indexed = IndexedAxis(graph, input_ids)
        self._matrices = Matrices(graph, precision, moments)

    def linear(self, linear: Linear, x: ir.Value) -> ir.Value:
        """Multiply by every matrix, move the products to their places, add the bias."""
        bias = None
        if linear.bias is not None:
            bias = self._graph.weight(f"{linear.name}.bias", (linear.size,), linear.bias)
        if len(linear.matrices) == 1 and linear.products is None:
            return self._product(linear.matrices[0], x, bias)
        products = [self._product(matrix, x) for matrix in linear.matrices]
        y = products[0]
        if len(products) > 1:
            (y,) = self._graph.node("Concat", products, {"axis": -1})
        y = self._indexed.take(y, linear.products, f"{linear.name}.products")
        return y if bias is None else self._graph.node("Add", [y, bias])[0]

    def floats(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        """Return the product in fp32 that chooses or weighs, [t, out]."""
        return self._graph.in_fp32(self._matrices.multiply_floats(matrix, x))

    def rows(self, table: Matrix, ids: ir.Value) -> ir.Value:
        """Return the rows [t, in] of a table for ids [t]."""
        return self._matrices.rows(table, ids)

    def _product(self, matrix: Matrix, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        taken = self._indexed.take(x, matrix.inputs, f"{matrix.name}.inputs")
        return self._matrices.multiply(matrix, taken, bias)
