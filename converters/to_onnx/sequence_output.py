"""The output of a model that does not generate: all hidden states, or a classifier's logits."""

import onnx_ir as ir

from converters.to_onnx.activations import activate
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.linears import classifier
from converters.to_onnx.products import Products
from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names


def add_sequence_output(
    graph: GraphBuilder, products: Products, checkpoint: Checkpoint, hidden: ir.Value
) -> None:
    """Add the output: hidden states [t, hidden], or the logits of one requested token per row.

    A base model's own pooler is omitted: it was not trained for embedding.
    """
    spec = checkpoint.spec
    if spec.task != CLASSIFICATION:
        graph.output_in_fp32(graph.in_fp32(hidden), names.HIDDEN_STATES, ["t", spec.hidden_size])
        return
    index = graph.input(names.LOGIT_INDEX, ir.DataType.INT64, ["n"])
    (x,) = graph.node("Gather", [hidden, index], {"axis": 0})
    first, *outer = classifier(checkpoint)
    y = products.linear(first, x)
    for linear in outer:
        assert spec.head.dense is not None, "two linears have an activation in between"
        y = products.linear(linear, activate(graph, spec.head.dense.activation, y))
    graph.output_in_fp32(graph.in_fp32(y), names.LOGITS, ["n", spec.num_labels])
