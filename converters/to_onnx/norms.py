"""RMS norms and LayerNorms of the graph, with weights that correct for a changed width.

An RMS norm over a narrowed residual stream must divide by the width n before pruning, and one over
padded heads by the width without padding, but ONNX Runtime's operators divide by the width h of
their input. Removed and padded elements are zero, so the sum of squares is the same. The weight is
therefore multiplied by sqrt(n/h), and epsilon by n/h.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.rescaling import NO_EXPONENTS, Exponents
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.onnx_format.names import MICROSOFT

# By Family.norm: the operator, and the operator that first adds to the residual stream.
OPERATORS = {
    "rms": ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    "layer": ("LayerNormalization", "SkipLayerNormalization"),
}


@dataclass(frozen=True)
class Norm:
    """One norm over the last axis; `parameters` are its weight and, if it has one, its bias."""

    graph: GraphBuilder
    kind: str
    parameters: tuple[ir.Value, ...]
    epsilon: float

    def apply(self, x: ir.Value) -> ir.Value:
        inputs = [x, *self.parameters]
        attributes = {"axis": -1, "epsilon": self.epsilon}
        return self.graph.node(OPERATORS[self.kind][0], inputs, attributes)[0]

    def apply_to_sum(self, x: ir.Value, delta: ir.Value) -> ir.Value:
        """Return the norm of x + delta, for norms on the sum."""
        inputs, attributes = [x, delta, *self.parameters], {"epsilon": self.epsilon}
        return self.graph.node(OPERATORS[self.kind][1], inputs, attributes, domain=MICROSOFT)[0]

    def add_and_apply(self, x: ir.Value, delta: ir.Value, sum_name: str) -> list[ir.Value]:
        """Return the norm of x + delta, and the sum itself under the name `sum_name`."""
        normed, _, _, added = self.graph.node(
            OPERATORS[self.kind][1],
            [x, delta, *self.parameters],
            {"epsilon": self.epsilon},
            outputs=[f"{delta.name}.normed", "", "", sum_name],
            domain=MICROSOFT,
        )
        return [normed, added]


class Norms:
    """Makes the norms of one checkpoint by name; channels of those with exponents are divided."""

    def __init__(
        self, graph: GraphBuilder, checkpoint: Checkpoint, exponents: Exponents = NO_EXPONENTS
    ) -> None:
        self._graph, self._checkpoint, self._spec = graph, checkpoint, checkpoint.spec
        self._exponents = exponents

    def over_stream(self, name: str) -> Norm:
        sizes = (self._spec.norm_size, self._spec.hidden_size)
        exponents = self._exponents.get(name)

        def divided(part: Array) -> Array:
            return part if exponents is None else np.ldexp(part, -exponents)

        return self._norm(self._spec.family.norm, name, sizes, divided)

    def before(self, index: int, block: str) -> Norm | None:
        """Make the norm before a block; None if it reads the stream itself."""
        family = self._spec.family
        has_norm = family.has_norm(index, block)
        return self.over_stream(family.norm_name(index, block)) if has_norm else None

    def over_heads(self, name: str, layout: HeadLayout, count: int = 1) -> Norm:
        """Make a norm over each head, or over `count` heads at once."""
        sizes = (count * layout.head_dim, count * layout.width)
        return self._norm("rms", name, sizes, layout.pad_rows)

    def over_values(self, layout: HeadLayout) -> Norm:
        """Make a norm over the values of each head, which has no weight of its own."""
        ratio = np.float64(layout.head_dim) / layout.width
        ones = np.full(layout.width, np.sqrt(ratio), np.float32)
        weight = self._graph.weight(f"values.{layout.head_dim}", ones.shape, lambda: ones)
        return Norm(self._graph, "rms", (weight,), float(self._spec.norm_eps * ratio))

    def before_router(self, name: str) -> Norm:
        """Make the norm of a router beside an MLP, whose weight is a stored vector over a root."""
        sizes = (self._spec.norm_size, self._spec.hidden_size)
        ratio = np.float64(sizes[0]) / sizes[1]

        def weight() -> Array:
            # The root of the ratio over that of the width before removal.
            stored: Array = self._checkpoint.read(name) / np.sqrt(np.float64(sizes[1]))
            return stored.astype(np.float32)

        parameter = self._graph.weight(name, sizes[1:], weight)
        return Norm(self._graph, "rms", (parameter,), float(self._spec.norm_eps * ratio))

    def _norm(
        self, kind: str, name: str, sizes: tuple[int, int], change: Callable[[Array], Array]
    ) -> Norm:
        """Make a norm that divides by `sizes[0]` over an axis of size `sizes[1]`.

        `change` is applied to its parameters last.
        """
        ratio = np.float64(sizes[0]) / sizes[1]

        def weight() -> Array:
            stored = self._checkpoint.read(f"{name}.weight").astype(np.float64)
            whole = (stored + self._spec.family.norm_offset) * np.sqrt(ratio)
            return change(whole.astype(np.float32))

        def bias() -> Array:
            return change(self._checkpoint.read(f"{name}.bias").astype(np.float32))

        has_bias = kind == "layer" and self._spec.has_norm_bias
        parts = {"weight": weight} | ({"bias": bias} if has_bias else {})
        parameters = tuple(
            self._graph.weight(f"{name}.{part}", sizes[1:], read) for part, read in parts.items()
        )
        return Norm(self._graph, kind, parameters, float(self._spec.norm_eps * ratio))
