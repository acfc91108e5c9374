"""Conversion between packed tokens [t, …] and the padded rows [b, s, …] that attention needs.

Only attention sees rows. A call with a prompt in one row and single tokens in others therefore
computes no linear, norm or activation on padding.
"""

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from sgate_serve.onnx_format import names


class Packing:
    """The two index inputs of one graph, and the conversions that use them."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph
        self.unpack_index = graph.input(names.UNPACK_INDEX, ir.DataType.INT64, ["b", "s"])
        self.pack_index = graph.input(names.PACK_INDEX, ir.DataType.INT64, ["t"])

    def unpack(self, x: ir.Value) -> ir.Value:
        """Return the rows [b, s, width] of packed tokens [t, width]."""
        return self._graph.node("Gather", [x, self.unpack_index], {"axis": 0})[0]

    def pack(self, x: ir.Value, width: int) -> ir.Value:
        """Return the packed tokens [t, width] of rows [b, s, width]."""
        shape = self._graph.constant(f"packed.{width}", np.array([-1, width], np.int64))
        (flat,) = self._graph.node("Reshape", [x, shape])
        return self._graph.node("Gather", [flat, self.pack_index], {"axis": 0})[0]
