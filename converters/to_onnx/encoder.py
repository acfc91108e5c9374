"""The encoder graph: embeddings, layers with norms on the sum, hidden states or a classifier.

Tokens of all rows are packed; only attention sees rows, and no token attends to padding. Widths
come from the spec, layer by layer; a layer may lack attention, the MLP or both, but its norms stay.
"""

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import activate
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.metadata import graph_metadata
from converters.to_onnx.norms import Norm, Norms
from converters.to_onnx.packing import Packing
from converters.to_onnx.products import Products
from converters.to_onnx.sequence_output import add_sequence_output
from sgate_serve.architecture.family import ATTENTION, MLP, TYPES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.names import MICROSOFT
from sgate_serve.onnx_format.precision import Precision


def build_encoder(checkpoint: Checkpoint, precision: Precision) -> ir.Model:
    """Return the graph of a checkpoint; weights are read and rounded when it is saved."""
    return _Encoder(checkpoint, precision).build()


class _Encoder:
    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint, self.spec, self.precision = checkpoint, checkpoint.spec, precision
        self.graph = graph = GraphBuilder()
        self.input_ids = graph.input(names.INPUT_IDS, ir.DataType.INT64, ["t"])
        self.packing = Packing(graph)
        self.lengths = graph.input(names.QUERY_SEQLENS, ir.DataType.INT32, ["b"])
        self.products = Products(graph, self.input_ids, precision)
        self.norms = Norms(graph, checkpoint)

    def build(self) -> ir.Model:
        x = self.embed()
        for index, shape in enumerate(self.spec.layers):
            attended = self.attention(index, x) if shape.num_heads else None
            x = self.normalized_sum(self.norm(index, ATTENTION), x, attended)
            units = self.mlp(index, x) if shape.mlp_units else None
            x = self.normalized_sum(self.norm(index, MLP), x, units)
            # ONNX Runtime removes it unless the residual stream is requested as an output.
            self.graph.node("Identity", [x], outputs=[names.residual_name(index)])
        add_sequence_output(self.graph, self.products, self.checkpoint, x)
        metadata = graph_metadata(self.checkpoint, self.spec.max_positions, self.precision)
        return self.graph.model(metadata)

    def norm(self, index: int, block: str) -> Norm:
        return self.norms.over_stream(self.spec.family.norm_name(index, block))

    def normalized_sum(self, norm: Norm, x: ir.Value, delta: ir.Value | None) -> ir.Value:
        """Return the norm of x + delta, or of x if the block was removed."""
        return norm.apply(x) if delta is None else norm.apply_to_sum(x, delta)

    def embed(self) -> ir.Value:
        """Return the norm of the sum of token, position and type embeddings, [t, hidden]."""
        spec, family = self.spec, self.spec.family
        embedded = self.rows(family.embedding, spec.vocab_size, self.input_ids)
        rows = [self.position_rows()]
        for name, axes in family.outside.items():
            if TYPES in axes:
                types = self.graph.input(names.TOKEN_TYPE_IDS, ir.DataType.INT64, ["t"])
                module = name.removesuffix(".weight")
                rows.append(self.rows(module, spec.num_types, types))
        for row in rows:
            (embedded,) = self.graph.node("Add", [embedded, row])
        return self.norms.over_stream(f"{family.embedding_norm}").apply(embedded)

    def position_rows(self) -> ir.Value:
        """Return the position embeddings.

        Positions count from 0: table rows before the first position are omitted. If the family
        gives padding tokens a position of their own, its row follows the others.
        """
        positions = self.graph.input(names.POSITION_IDS, ir.DataType.INT64, ["t"])
        return self.products.rows(linears.position_table(self.checkpoint), positions)

    def rows(self, module: str, count: int, ids: ir.Value) -> ir.Value:
        return self.products.rows(linears.table(self.checkpoint, module, count), ids)

    def attention(self, index: int, x: ir.Value) -> ir.Value:
        shape, heads = self.spec.layers[index], HeadLayout.of(self.spec, index)
        projected = self.products.linear(linears.first_linear(self.checkpoint, index, ATTENTION), x)
        width = shape.num_heads * heads.width
        parts = self.graph.node(
            "Split",
            [
                self.packing.unpack(projected),
                self.graph.constant(f"heads.{width}", np.full(3, width, np.int64)),
            ],
            {"axis": -1},
            outputs=[f"layer.{index}.{part}" for part in ("query", "key", "value")],
        )
        (attended,) = self.graph.node(
            "MultiHeadAttention",
            [*parts, None, self.lengths],
            {"num_heads": shape.num_heads, "scale": self.spec.attention_scales[index]},
            domain=MICROSOFT,
        )
        heads_out = self.packing.pack(attended, width)
        return self.products.linear(linears.attention_output(self.checkpoint, index), heads_out)

    def mlp(self, index: int, x: ir.Value) -> ir.Value:
        """Return down(act(up)): no encoder has a gate."""
        up = self.products.linear(linears.first_linear(self.checkpoint, index, MLP), x)
        units = activate(self.graph, self.spec.activation, up)
        return self.products.linear(linears.mlp_down(self.checkpoint, index), units)
