"""The residual stream, with each addition of a block fused into the norm after it, if any."""

import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.norms import Norm
from sgate_serve.onnx_format.names import residual_name


class ResidualStream:
    """The last sum, the block output not yet added to it, and the names that the sum will have.

    The stream after layer i is computed only by the addition in a later norm, so `end_layer` stores
    its name and the addition assigns it. After a layer without blocks, an Identity repeats the
    stream under the layer's name; ONNX Runtime removes it unless it is requested as an output.
    """

    def __init__(self, graph: GraphBuilder, embedding: ir.Value) -> None:
        self._graph, self._sum = graph, embedding
        self._delta: ir.Value | None = None
        self._pending_names: list[str] = []

    def add(self, delta: ir.Value) -> None:
        assert self._delta is None, "a block must read the stream before the next adds to it"
        self._delta = delta

    def end_layer(self, layer: int) -> None:
        self._pending_names.append(residual_name(layer))

    def scale(self, factor: ir.Value) -> None:
        """Multiply the stream, with the last block's output, by a number."""
        (self._sum,) = self._graph.node("Mul", [self.current(), factor])

    def read(self, norm: Norm | None) -> ir.Value:
        """Return what a block reads: the norm of the stream, or without one the stream itself."""
        return self.current() if norm is None else self.normalize(norm)

    def normalize(self, norm: Norm) -> ir.Value:
        """Return the norm of the stream, [t, hidden], including the last block's output."""
        if self._delta is None:
            normed = norm.apply(self._sum)
        else:
            name = self._sum_name(self._delta)
            normed, self._sum = norm.add_and_apply(self._sum, self._delta, name)
        self._settle()
        return normed

    def current(self) -> ir.Value:
        """Return the stream itself, [t, hidden], for a block without a norm before it."""
        if self._delta is not None:
            name = self._sum_name(self._delta)
            (self._sum,) = self._graph.node("Add", [self._sum, self._delta], outputs=[name])
        self._settle()
        return self._sum

    def _sum_name(self, delta: ir.Value) -> str:
        return self._pending_names.pop(0) if self._pending_names else f"{delta.name}.sum"

    def _settle(self) -> None:
        """Note that the last block's output is added, and name the sum after the layers so far."""
        self._delta = None
        for name in self._pending_names:
            self._graph.node("Identity", [self._sum], outputs=[name])
        self._pending_names = []
