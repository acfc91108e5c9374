"""The recurrent block of a layer: a convolution over the last tokens, then a gated delta rule.

`LinearAttention` computes the rule token by token, so that a token gets the same numbers in
whatever call it is. Between the projections all is in fp32, as in transformers, in every precision
of the graph. Padding decays and renews nothing, and so leaves a state as it is.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import activate
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.histories import Histories
from converters.to_onnx.norms import Norm
from converters.to_onnx.products import Products
from converters.to_onnx.states import States
from sgate_serve.architecture.family import ATTENTION, CAUSAL_LM
from sgate_serve.architecture.recurrence import UNIT_EPSILON, Recurrence
from sgate_serve.architecture.recurrent_layers import CHANNELS, recurrent_sizes
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.onnx_format.names import MICROSOFT


class RecurrentBlocks:
    """Makes the recurrent blocks of one graph, whose linears `rescale` changes."""

    def __init__(
        self,
        graph: GraphBuilder,
        products: Products,
        checkpoint: Checkpoint,
        histories: Histories,
        rescale: Callable[[int, linears.Linear], linears.Linear],
    ) -> None:
        self._graph, self._products, self._rescale = graph, products, rescale
        self._histories, self._packing = histories, histories.packing
        self._checkpoint, self._spec = checkpoint, checkpoint.spec
        self._states = States(graph, self._spec, are_kept=self._spec.task == CAUSAL_LM)

    def __call__(self, index: int, x: ir.Value) -> ir.Value:
        """Return what a block writes to the stream, [t, hidden], of the norm before it."""
        graph, shape = self._graph, self._spec.layers[index]
        linear = linears.first_linear(self._checkpoint, index, ATTENTION)
        projected = graph.in_fp32(self._products.linear(self._rescale(index, linear), x))
        values = shape.num_heads * shape.head_dim
        channels = recurrent_sizes(shape, self._spec.kernel)[CHANNELS]
        raw, gate = self._split(projected, channels, values)
        mixed, table = self._convolved(index, raw)
        keys, value = self._split(mixed, channels - values, values)
        query, key = self._halves(self._packing.unpack(self._unit(index, keys)))
        rows = [query, key, self._packing.unpack(value), self._states.heads(index)]
        read, heads = graph.node(
            "LinearAttention",
            [*rows, *self._kept_and_renewed(index, x)],
            {
                "q_num_heads": shape.num_kv_heads,
                "kv_num_heads": shape.num_heads,
                "scale": self._spec.attention_scales[index],
            },
            outputs=[f"layer.{index}.read", f"layer.{index}.heads"],
            domain=MICROSOFT,
        )
        if self._states.are_kept:
            (recent,) = graph.node("Gather", [table, self._histories.left], {"axis": 0})
            self._states.present(index, recent, heads)
        out = self._gated(index, self._packing.pack(read, values), gate)
        return self._products.linear(linears.attention_output(self._checkpoint, index), out)

    @property
    def _names(self) -> Recurrence:
        names = self._spec.family.recurrence
        assert names is not None, "only such a family has recurrent layers"
        return names

    def _convolved(self, index: int, raw: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return query, key and value after the convolution, and the table that it reads."""
        graph, kernel = self._graph, self._spec.kernel
        held = self._states.recent(index, self._histories.num_rows)
        (table,) = graph.node("Concat", [held, raw], {"axis": 0})
        (taken,) = graph.node("Gather", [table, self._histories.read], {"axis": 0})
        channels = recurrent_sizes(self._spec.layers[index], kernel)[CHANNELS]

        def taps(stored: Array) -> Array:
            return stored[:, 0].T.copy()

        weight = self._stored(index, f"{self._names.convolution}.weight", (kernel, channels), taps)
        (parts,) = graph.node("Mul", [taken, weight])
        axis = graph.constant("recurrence.taps", np.array([1]))
        (mixed,) = graph.node("ReduceSum", [parts, axis], {"keepdims": 0})
        return activate(graph, self._spec.activation, mixed), table

    def _unit(self, index: int, x: ir.Value) -> ir.Value:
        """Divide each head of queries and keys by its length."""
        width = self._spec.layers[index].key_dim
        # A norm divides by the root of a mean instead of a sum.
        ones = np.full(width, width**-0.5, np.float32)
        weight = self._graph.constant(f"recurrence.unit.{width}", ones)
        return self._by_head(x, width, Norm(self._graph, "rms", (weight,), UNIT_EPSILON / width))

    def _gated(self, index: int, read: ir.Value, gate: ir.Value) -> ir.Value:
        """Return the norm of each head times its gate, in the graph's floats."""
        width = self._spec.layers[index].head_dim
        weight = self._stored(index, f"{self._names.norm}.weight", (width,))
        normed = self._by_head(
            read, width, Norm(self._graph, "rms", (weight,), self._spec.norm_eps)
        )
        (out,) = self._graph.node("Mul", [normed, activate(self._graph, "silu", gate)])
        return self._graph.from_fp32(out)

    def _by_head(self, x: ir.Value, width: int, norm: Norm) -> ir.Value:
        """Apply a norm to each head of [t, heads · width]."""
        apart = self._graph.constant(f"recurrence.heads.{width}", np.array([-1, width]))
        (heads,) = self._graph.node("Reshape", [x, apart])
        (size,) = self._graph.node("Shape", [x])
        return self._graph.node("Reshape", [norm.apply(heads), size])[0]

    def _kept_and_renewed(self, index: int, x: ir.Value) -> list[ir.Value]:
        """Return how much of its state each head keeps, a logarithm, and renews: [b, s, heads]."""
        graph, heads = self._graph, self._spec.layers[index].num_heads
        linear = self._rescale(index, linears.recurrent_shares(self._checkpoint, index))
        renewed, kept = self._halves(graph.in_fp32(self._products.linear(linear, x)))
        (renewed,) = graph.node("Sigmoid", [renewed])
        (kept,) = graph.node("Add", [kept, self._stored(index, self._names.step, (heads,))])
        (kept,) = graph.node("Softplus", [kept])
        (rate,) = graph.node("Exp", [self._stored(index, self._names.decay, (heads,))])
        (rate,) = graph.node("Neg", [rate])
        (kept,) = graph.node("Mul", [kept, rate])
        (both,) = graph.node("Concat", [kept, renewed], {"axis": -1})
        (rows,) = graph.node("Mul", [self._packing.unpack(both), self._histories.is_real])
        return self._halves(rows)

    def _stored(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        change: Callable[[Array], Array] = np.asarray,
    ) -> ir.Value:
        """Return a tensor of a layer in fp32."""
        whole = f"{self._spec.family.layer_name(index)}.{name}"
        read = partial(linears.read_fp32, self._checkpoint, whole)
        return self._graph.weight(whole, shape, lambda: change(read()), ir.DataType.FLOAT)

    def _split(self, x: ir.Value, *sizes: int) -> list[ir.Value]:
        name = ".".join(map(str, ("sizes", *sizes)))
        return self._parts(x, [x, self._graph.constant(name, np.array(sizes))], {})

    def _halves(self, x: ir.Value) -> list[ir.Value]:
        return self._parts(x, [x], {"num_outputs": 2})

    def _parts(self, x: ir.Value, inputs: list[ir.Value], how: dict[str, int]) -> list[ir.Value]:
        outputs = [f"{x.name}.first", f"{x.name}.second"]
        return self._graph.node("Split", inputs, {"axis": -1, **how}, outputs=outputs)
