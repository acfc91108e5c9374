"""The residual stream of a pre-norm decoder, with each addition fused into the norm after it."""

import onnx_ir as ir

from converters.to_onnx.graph import MICROSOFT, GraphBuilder
from sgate_serve.onnx_format import residual_name


class ResidualStream:
    """The last sum, the block output that is not added yet, and the names the sum will bear.

    The stream after layer i becomes a value only when a later norm adds it up, so `end_layer`
    remembers the name and `normalize` hands it out. A layer that does nothing repeats the stream
    under its own name by an Identity, which ONNX Runtime removes unless somebody asks for it.
    """

    def __init__(self, graph: GraphBuilder, embedding: ir.Value, norm_eps: float) -> None:
        self._graph, self._sum, self._eps = graph, embedding, norm_eps
        self._delta: ir.Value | None = None
        self._pending_names: list[str] = []

    def add(self, delta: ir.Value) -> None:
        assert self._delta is None, "a norm must come between two blocks"
        self._delta = delta

    def end_layer(self, layer: int) -> None:
        self._pending_names.append(residual_name(layer))

    def normalize(self, weight: ir.Value) -> ir.Value:
        """Return the RMS norm of the stream, [b, s, hidden], with the last block's output in it."""
        if self._delta is None:
            (normed,) = self._graph.node(
                "SimplifiedLayerNormalization",
                [self._sum, weight],
                {"axis": -1, "epsilon": self._eps},
            )
        else:
            normed = self._add_and_normalize(self._delta, weight)
        for name in self._pending_names:
            self._graph.node("Identity", [self._sum], outputs=[name])
        self._pending_names = []
        return normed

    def _add_and_normalize(self, delta: ir.Value, weight: ir.Value) -> ir.Value:
        sum_name = self._pending_names.pop(0) if self._pending_names else f"{delta.name}.sum"
        normed, _, _, self._sum = self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [self._sum, delta, weight],
            {"epsilon": self._eps},
            outputs=[f"{delta.name}.normed", "", "", sum_name],
            domain=MICROSOFT,
        )
        self._delta = None
        return normed
