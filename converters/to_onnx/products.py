"""How the graph multiplies tokens [t, in] by a `Linear`: products, index work and bias."""

import onnx_ir as ir

from converters.to_onnx.graph import MICROSOFT, GraphBuilder
from converters.to_onnx.indices import IndexedAxis
from converters.to_onnx.linears import Linear, Matrix


class Products:
    """The linears of one graph."""

    def __init__(self, graph: GraphBuilder, input_ids: ir.Value) -> None:
        self._graph = graph
        self._indexed = IndexedAxis(graph, input_ids)

    def linear(self, linear: Linear, x: ir.Value) -> ir.Value:
        """Multiply by every matrix, put the products at their places, add the bias."""
        products = [self._product(matrix, x) for matrix in linear.matrices]
        y = products[0]
        if len(products) > 1:
            (y,) = self._graph.node("Concat", products, {"axis": -1})
        y = self._indexed.take(y, linear.products, f"{linear.name}.products")
        if linear.bias is None:
            return y
        bias = self._graph.weight(f"{linear.name}.bias", (linear.size,), linear.bias)
        return self._graph.node("Add", [y, bias])[0]

    def _product(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        # FusedMatMul takes [out, in] as stored, so a tied head needs no transposed copy; it is
        # packed at load and then as fast as MatMul.
        taken = self._indexed.take(x, matrix.inputs, f"{matrix.name}.inputs")
        weight = self._graph.weight(f"{matrix.name}.weight", matrix.shape, matrix.weight)
        attributes = {"transB": 1}
        return self._graph.node("FusedMatMul", [taken, weight], attributes, domain=MICROSOFT)[0]
