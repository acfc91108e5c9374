"""The output of a model that does not generate: all hidden states, or a classifier's logits."""

import onnx_ir as ir

from converters.to_onnx.activations import activate
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.linears import classifier
from converters.to_onnx.norms import Norms
from converters.to_onnx.products import Products
from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names


def add_sequence_output(
    graph: GraphBuilder,
    products: Products,
    checkpoint: Checkpoint,
    hidden: ir.Value,
    pooled: ir.Value | None = None,
) -> None:
    """Add the output: hidden states [t, hidden], or the logits of each row.

    A classifier reads `pooled` states [b, hidden], or without them one requested token per row. A
    base model's own pooler is omitted: it was not trained for embedding.
    """
    spec, rows = checkpoint.spec, "n" if pooled is None else "b"
    if spec.task != CLASSIFICATION:
        graph.output_in_fp32(graph.in_fp32(hidden), names.HIDDEN_STATES, ["t", spec.hidden_size])
        return
    if pooled is None:
        index = graph.input(names.LOGIT_INDEX, ir.DataType.INT64, ["n"])
        (pooled,) = graph.node("Gather", [hidden, index], {"axis": 0})
    first, *outer = classifier(checkpoint)
    y, dense = products.linear(first, pooled), spec.head.dense
    for linear in outer:
        assert dense is not None, "two linears have an activation in between"
        y = activate(graph, dense.activation, y)
        y = y if dense.norm is None else Norms(graph, checkpoint).over_stream(dense.norm).apply(y)
        y = products.linear(linear, y)
    graph.output_in_fp32(graph.in_fp32(y), names.LOGITS, [rows, spec.num_labels])
