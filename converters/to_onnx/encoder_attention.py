"""The attention block of an encoder's graph: every token sees all others, or those in a window."""

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.products import Products
from converters.to_onnx.rotary_tables import RotaryTables
from converters.to_onnx.rows import Rows
from sgate_serve.architecture.family import ATTENTION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format.names import MICROSOFT


class EncoderAttention:
    """Makes the attention blocks of one graph, for texts of up to `capacity` tokens."""

    def __init__(
        self,
        graph: GraphBuilder,
        rows: Rows,
        products: Products,
        checkpoint: Checkpoint,
        capacity: int,
    ) -> None:
        self.graph, self.rows, self.products = graph, rows, products
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.tables = RotaryTables(graph, capacity)

    def __call__(self, index: int, x: ir.Value) -> ir.Value:
        """Return what the block of a layer adds to the stream, [t, hidden]."""
        shape, heads = self.spec.layers[index], HeadLayout.of(self.spec, index)
        projected = self.products.linear(linears.first_linear(self.checkpoint, index, ATTENTION), x)
        width, window = shape.num_heads * heads.width, self.spec.windows[index]
        query, key, value = self.graph.node(
            "Split",
            [
                self.rows.packing.unpack(projected),
                self.graph.constant(f"heads.{width}", np.full(3, width, np.int64)),
            ],
            {"axis": -1},
            outputs=[f"layer.{index}.{part}" for part in ("query", "key", "value")],
        )
        query, key = (self.rotated(index, part, heads) for part in (query, key))
        bias = [] if window is None else [self.rows.window_bias(window)]
        (attended,) = self.graph.node(
            "MultiHeadAttention",
            [query, key, value, None, self.rows.lengths, *bias],
            {"num_heads": shape.num_heads, "scale": self.spec.attention_scales[index]},
            domain=MICROSOFT,
        )
        heads_out = self.rows.packing.pack(attended, width)
        return self.products.linear(linears.attention_output(self.checkpoint, index), heads_out)

    def rotated(self, index: int, x: ir.Value, heads: HeadLayout) -> ir.Value:
        """Return queries or keys [b, s, heads * width] rotated by their places in a row."""
        rope = self.spec.ropes[index]
        if rope is None:
            return x
        # One number for all rows: the position of their first token.
        first = self.graph.constant("first_position", np.zeros(1, np.int64))
        inputs = [x, first, *self.tables.of(rope, heads)]
        return self.graph.node("RotaryEmbedding", inputs, domain=MICROSOFT)[0]
