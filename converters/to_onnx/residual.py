"""The residual stream of a decoder, with each addition fused into the norm after it."""

import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.norms import Norm
from sgate_serve.onnx_format.names import residual_name


class ResidualStream:
    """The last sum, the block output that is not added yet, and the names the sum will bear.

    The stream after layer i becomes a value only when a later norm adds it up, so `end_layer`
    remembers the name and `normalize` hands it out. A layer that does nothing repeats the stream
    under its own name by an Identity, which ONNX Runtime removes unless somebody asks for it.
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
        """Return the norm of the stream, [t, hidden], with the last block's output in it."""
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
