"""The encoder graph: embeddings, layers with norms before blocks or on the sum, the model's output.

Tokens of all rows are packed; only attention sees rows, and no token attends to padding. Widths
come from the spec, layer by layer; a layer may lack attention, the MLP or both. Families differ
only in data: their table entry and the spec.
"""

import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import mlp_units
from converters.to_onnx.encoder_attention import EncoderAttention
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.metadata import graph_metadata
from converters.to_onnx.norms import Norm, Norms
from converters.to_onnx.products import Products
from converters.to_onnx.residual import ResidualStream
from converters.to_onnx.rope import max_positions
from converters.to_onnx.rotary_tables import MAX_CAPACITY
from converters.to_onnx.rows import Rows
from converters.to_onnx.sequence_output import add_sequence_output
from sgate_serve.architecture.family import ATTENTION, MEAN, MLP, TYPES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.precision import Precision


def build_encoder(checkpoint: Checkpoint, precision: Precision) -> ir.Model:
    """Return the graph of a checkpoint; weights are read and rounded when it is saved.

    Raises EngineError for a rope type that the graph cannot express.
    """
    return _Encoder(checkpoint, precision).build()


class _Encoder:
    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint, self.spec, self.precision = checkpoint, checkpoint.spec, precision
        self.graph = graph = GraphBuilder()
        self.input_ids = graph.input(names.INPUT_IDS, ir.DataType.INT64, ["t"])
        self.rows = Rows(graph)
        self.products = Products(graph, self.input_ids, precision)
        self.norms = Norms(graph, checkpoint)
        self.capacity = min(max_positions(self.spec), MAX_CAPACITY)
        self.attention = EncoderAttention(
            graph, self.rows, self.products, checkpoint, self.capacity
        )

    def build(self) -> ir.Model:
        embedded = self.embed()
        if self.spec.family.residual == "post":
            x = self.layers_with_norms_on_sums(embedded)
        else:
            x = self.layers_with_norms_before(embedded)
        pooled = self.rows.mean(x) if self.spec.head.pooling == MEAN else None
        add_sequence_output(self.graph, self.products, self.checkpoint, x, pooled)
        return self.graph.model(graph_metadata(self.checkpoint, self.capacity, self.precision))

    def layers_with_norms_on_sums(self, x: ir.Value) -> ir.Value:
        """Return the states after all layers, whose norms stay where a block was removed."""
        for index, shape in enumerate(self.spec.layers):
            attended = self.attention(index, x) if shape.num_heads else None
            x = self.normalized_sum(self.norm(index, ATTENTION), x, attended)
            units = self.mlp(index, x) if shape.mlp_units else None
            x = self.normalized_sum(self.norm(index, MLP), x, units)
            # ONNX Runtime removes it unless the residual stream is requested as an output.
            self.graph.node("Identity", [x], outputs=[names.residual_name(index)])
        return x

    def norm(self, index: int, block: str) -> Norm:
        return self.norms.over_stream(self.spec.family.norm_name(index, block))

    def normalized_sum(self, norm: Norm, x: ir.Value, delta: ir.Value | None) -> ir.Value:
        """Return the norm of x + delta, or of x if the block was removed."""
        return norm.apply(x) if delta is None else norm.apply_to_sum(x, delta)

    def layers_with_norms_before(self, x: ir.Value) -> ir.Value:
        """Return the norm of the states after all layers."""
        stream = ResidualStream(self.graph, x)
        for index, shape in enumerate(self.spec.layers):
            if shape.num_heads:
                read = stream.read(self.norms.before(index, ATTENTION))
                stream.add(self.attention(index, read))
            if shape.mlp_units:
                stream.add(self.mlp(index, stream.read(self.norms.before(index, MLP))))
            stream.end_layer(index)
        return stream.normalize(self.norms.over_stream(f"{self.spec.family.final_norm}"))

    def embed(self) -> ir.Value:
        """Return the norm of the sum of token, position and type embeddings, [t, hidden]."""
        spec, family = self.spec, self.spec.family
        embedded = self.table_rows(family.embedding, spec.vocab_size, self.input_ids)
        rows = [] if family.position_table is None else [self.position_rows()]
        for name, axes in spec.outside.items():
            if TYPES in axes:
                types = self.graph.input(names.TOKEN_TYPE_IDS, ir.DataType.INT64, ["t"])
                module = name.removesuffix(".weight")
                rows.append(self.table_rows(module, spec.num_types, types))
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

    def table_rows(self, module: str, count: int, ids: ir.Value) -> ir.Value:
        return self.products.rows(linears.table(self.checkpoint, module, count), ids)

    def mlp(self, index: int, x: ir.Value) -> ir.Value:
        packed = self.products.linear(linears.first_linear(self.checkpoint, index, MLP), x)
        units = mlp_units(self.graph, self.spec, index, packed)
        return self.products.linear(linears.mlp_down(self.checkpoint, index), units)
