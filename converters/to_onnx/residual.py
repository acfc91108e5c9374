"""The residual stream of a decoder, with each addition fused into the norm after it."""

import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.norms import Norm
from sgate_serve.onnx_format.names import residual_name


class ResidualStream:
    """The last sum, the block output not yet added to it, and the names that the sum will have.

    The stream after layer i is computed only by the addition in a later norm, so `end_layer` stores
    its name and `normalize` assigns it. After a layer without blocks, an Identity repeats the
    stream under the layer's name; ONNX Runtime removes it unless it is requested as an output.
    """

    def __init__(self, graph: GraphBuilder, embedding: ir.Value) -> None:
        self._graph, self._sum = graph, embedding
        self._delta: ir.Value | None = None
        self._pending_names: list[str] = []

    def add(self, delta: ir.Value) -> None:
        assert self._delta is None, "a norm must come between two blocks"
        self._delta = delta

    def end_layer(self, layer: int) -> None:
        self._pending_names.append(residual_name(layer))

    def normalize(self, norm: Norm) -> ir.Value:
        """Return the norm of the stream, [t, hidden], including the last block's output."""
        if self._delta is None:
            normed = norm.apply(self._sum)
        else:
            normed = self._add_and_normalize(self._delta, norm)
        for name in self._pending_names:
            self._graph.node("Identity", [self._sum], outputs=[name])
        self._pending_names = []
        return normed

    def _add_and_normalize(self, delta: ir.Value, norm: Norm) -> ir.Value:
        sum_name = self._pending_names.pop(0) if self._pending_names else f"{delta.name}.sum"
        normed, self._sum = norm.add_and_apply(self._sum, delta, sum_name)
        self._delta = None
        return normed
