"""The rows of an encoder's graph: how long each is, who sees whom in them, and their means."""

from functools import cached_property

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.packing import Packing
from sgate_serve.onnx_format import names

# Added to a score, it leaves no weight after the softmax, and two of them do not overflow.
UNSEEN = np.finfo(np.float32).min / 2


class Rows:
    """The padded rows [b, s, …] of packed tokens, and the length of each."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph, self.packing = graph, Packing(graph)
        self.lengths = graph.input(names.QUERY_SEQLENS, ir.DataType.INT32, ["b"])
        self._biases: dict[int, ir.Value] = {}

    def window_bias(self, window: int) -> ir.Value:
        """Return what is added to scores [b, heads, s, s]: a token sees `window` to each side."""
        if window not in self._biases:
            graph = self._graph
            (distances,) = graph.node("Sub", [self._unsqueezed(self._places, 1), self._places])
            (distances,) = graph.node("Abs", [distances])
            width = graph.constant(f"window.{window}", np.array(window, np.int64))
            (is_seen,) = graph.node("LessOrEqual", [distances, width])
            zero = graph.constant("seen", np.array(0, np.float32))
            unseen = graph.constant("unseen", np.array(UNSEEN, np.float32))
            (bias,) = graph.node("Where", [is_seen, zero, unseen])
            self._biases[window] = self._unsqueezed(bias, 0, 1)
        return self._biases[window]

    def mean(self, x: ir.Value) -> ir.Value:
        """Return the mean [b, hidden] of the tokens [t, hidden] of each row."""
        graph = self._graph
        (lengths,) = graph.node("Cast", [self.lengths], {"to": int(ir.DataType.INT64)})
        (is_real,) = graph.node("Less", [self._places, self._unsqueezed(lengths, 1)])
        (weights,) = graph.node("Cast", [is_real], {"to": int(ir.DataType.FLOAT)})
        weighted = [self.packing.unpack(x), self._unsqueezed(weights, 2)]
        (real,) = graph.node("Mul", weighted)
        axes = graph.constant("axes.1", np.array([1], np.int64))
        (total,) = graph.node("ReduceSum", [real, axes], {"keepdims": 0})
        (counts,) = graph.node("Cast", [self.lengths], {"to": int(ir.DataType.FLOAT)})
        return graph.node("Div", [total, self._unsqueezed(counts, 1)])[0]

    @cached_property
    def _places(self) -> ir.Value:
        """The numbers from 0 to s - 1, [s]."""
        graph = self._graph
        (width,) = graph.node("Shape", [self.packing.unpack_index], {"start": 1})
        (width,) = graph.node("Squeeze", [width])
        first, step = (graph.constant(f"number.{n}", np.array(n, np.int64)) for n in (0, 1))
        return graph.node("Range", [first, width, step])[0]

    def _unsqueezed(self, x: ir.Value, *axes: int) -> ir.Value:
        name = ".".join(map(str, ("axes", *axes)))
        places = self._graph.constant(name, np.array(axes, np.int64))
        return self._graph.node("Unsqueeze", [x, places])[0]
