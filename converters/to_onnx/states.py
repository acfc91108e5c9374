"""The states of recurrent layers in the decoder graph: past inputs and present outputs.

A state has a fixed size and is in fp32, whatever the precision. A model that does not generate has
none: each row begins with zeros.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import Dims, GraphBuilder
from sgate_serve.architecture.recurrent_layers import CHANNELS, recurrent_sizes
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.onnx_format import names


@dataclass(frozen=True)
class States:
    """The states of each recurrent layer of one graph; `are_kept` from call to call."""

    graph: GraphBuilder
    spec: ModelSpec
    are_kept: bool

    def recent(self, layer: int, num_rows: ir.Value) -> ir.Value:
        """Return the last tokens of each row that the convolution reads, [rows · (k - 1), …]."""
        *_, past, channels = self._dims(layer)[names.RECENT]
        shape = self.graph.constant(f"recent.{channels}", np.array([-1, channels]))
        if self.are_kept:
            held = self._input(layer, names.RECENT)
            return self.graph.node("Reshape", [held, shape])[0]
        width = self.graph.constant(f"recent.{past}.{channels}", np.array([past, channels]))
        (size,) = self.graph.node("Concat", [num_rows, width], {"axis": 0})
        (zeros,) = self.graph.node("ConstantOfShape", [size])
        return self.graph.node("Reshape", [zeros, shape])[0]

    def heads(self, layer: int) -> ir.Value | None:
        """Return what the heads hold; None stands for zeros."""
        return self._input(layer, names.HEADS) if self.are_kept else None

    def present(self, layer: int, recent: ir.Value, heads: ir.Value) -> None:
        """Make outputs of what the next call of a row begins with."""
        for part, value in ((names.RECENT, recent), (names.HEADS, heads)):
            name, dims = f"{names.PRESENT_STATE_PREFIX}{layer}.{part}", self._dims(layer)[part]
            self.graph.output(value, name, dims, ir.DataType.FLOAT)

    def _input(self, layer: int, part: str) -> ir.Value:
        name, dims = f"{names.PAST_STATE_PREFIX}{layer}.{part}", self._dims(layer)[part]
        return self.graph.input(name, ir.DataType.FLOAT, dims)

    def _dims(self, layer: int) -> dict[str, Dims]:
        shape, kernel = self.spec.layers[layer], self.spec.kernel
        return {
            names.RECENT: ["b", kernel - 1, recurrent_sizes(shape, kernel)[CHANNELS]],
            names.HEADS: ["b", shape.num_heads, shape.key_dim, shape.head_dim],
        }
