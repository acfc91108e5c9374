"""A mixture of experts in the graph: each expert multiplies the tokens that chose it, and no other.

The (token, choice) pairs are sorted by expert and split into one run for each, of any length. So a
step reads the weights of chosen experts alone, experts may differ in width, and a token's result
does not depend on the others of its call: it is the sum over its own choices, in their order.
"""

from functools import partial

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import activate, clamped_units
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.norms import Norms
from converters.to_onnx.products import Products
from sgate_serve.architecture.family import LEAST_SUM, ONE
from sgate_serve.checkpoint.reader import Checkpoint


class MixtureBlock:
    """The experts of one layer, their router and the shared expert."""

    def __init__(
        self, graph: GraphBuilder, products: Products, checkpoint: Checkpoint, layer: int
    ) -> None:
        self._graph, self._products, self._checkpoint = graph, products, checkpoint
        self._layer, self._shape = layer, checkpoint.spec.layers[layer]
        self._correction = checkpoint.spec.correction(layer)
        self._router = f"{checkpoint.spec.family.router_name(layer)}.weight"
        choosing = checkpoint.spec.router_tensors(layer)
        bias = f"{checkpoint.spec.family.router_name(layer)}.bias"
        self._router_bias = bias if bias in choosing else None
        self._shared_gate = next((name for name, axes in choosing.items() if ONE in axes), None)
        self._branch = checkpoint.spec.family.branch(layer)

    def __call__(self, x: ir.Value) -> ir.Value:
        """Return the block's output [t, hidden]."""
        routed = self.routed(x, x)
        if not self._shape.shared_units:
            return routed
        share, shared = self._share(x), self.shared(x)
        if share is not None:
            (shared,) = self._graph.node("Mul", [shared, self._in_floats(share)])
        return self._graph.node("Add", [routed, shared])[0]

    def beside(self, x: ir.Value, stream: ir.Value, norms: Norms) -> ir.Value:
        """Return the output of an MLP that reads `x`, and of experts that read the stream."""
        branch = self._branch
        assert branch is not None, "other experts read what the block reads"
        read = norms.over_stream(branch.before).apply(stream)
        choosing = norms.before_router(branch.router_scale).apply(stream)
        routed = norms.over_stream(branch.after).apply(self.routed(read, choosing))
        if not self._shape.shared_units:
            return routed
        shared = norms.over_stream(branch.after_shared).apply(self.shared(x))
        return self._graph.node("Add", [routed, shared])[0]

    def shared(self, x: ir.Value) -> ir.Value:
        """Return the whole output of the expert that every token uses."""
        return self._expert(len(self._shape.experts), x)

    def _share(self, x: ir.Value) -> ir.Value | None:
        """Return how much of the shared expert each token takes, [t, 1]; None for all of it."""
        if self._shared_gate is None:
            return None
        gate = linears.router(self._checkpoint, self._shared_gate, 1)
        return self._graph.node("Sigmoid", [self._products.floats(gate, x)])[0]

    def routed(self, x: ir.Value, choosing: ir.Value) -> ir.Value:
        """Return what the chosen experts make of `x`; the router reads `choosing`."""
        graph, top_k = self._graph, self._shape.top_k
        shares, choices = self._choices(choosing)
        (flat,) = graph.node("Reshape", [choices, self._shape_of(-1)])
        order, lengths = self._sorted(flat), self._lengths(flat)
        (tokens,) = graph.node("Div", [order, self._numbers("top_k", top_k)])
        (rows,) = graph.node("Gather", [x, tokens], {"axis": 0})
        joined = self._experts(rows, lengths)
        # Sorting the order gives the place of each (token, choice) pair.
        (mine,) = graph.node("Gather", [joined, self._sorted(order)], {"axis": 0})
        hidden = self._checkpoint.spec.hidden_size
        (by_token,) = graph.node("Reshape", [mine, self._shape_of(-1, top_k, hidden)])
        (across,) = graph.node("Reshape", [shares, self._shape_of(-1, 1, top_k)])
        (total,) = graph.node("MatMul", [self._in_floats(across), by_token])
        return graph.node("Reshape", [total, self._shape_of(-1, hidden)])[0]

    def _experts(self, rows: ir.Value, lengths: ir.Value) -> ir.Value:
        """Return what each expert makes of its run of rows, [t * top_k, hidden].

        Experts of one width share the operators between their products: most runs of a short call
        are empty, and each operator costs as much as reading thousands of weights.
        """
        graph, numbers = self._graph, range(len(self._shape.experts))
        runs = self._split(rows, lengths, "tokens")
        if len(set(self._shape.experts)) > 1 or not self._shape.experts[0]:
            outputs = [self._expert(number, runs[number]) for number in numbers]
            return graph.node("Concat", outputs, {"axis": 0})[0]
        packed = [self._gate_up(number, runs[number]) for number in numbers]
        (joined,) = graph.node("Concat", packed, {"axis": 0})
        units = self._split(self._active(joined, "experts"), lengths, "units")
        outputs = [self._down(number, units[number]) for number in numbers]
        return graph.node("Concat", outputs, {"axis": 0})[0]

    def _split(self, x: ir.Value, lengths: ir.Value, kind: str) -> list[ir.Value]:
        """Return the run of each expert among sorted rows."""
        numbers = range(len(self._shape.experts))
        names = [f"layer.{self._layer}.expert.{number}.{kind}" for number in numbers]
        return self._graph.node("Split", [x, lengths], {"axis": 0}, outputs=names)

    def _choices(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the experts that each token chooses and their shares, both [t, top_k]."""
        graph, count, spec = self._graph, len(self._shape.experts), self._checkpoint.spec
        router = linears.router(self._checkpoint, self._router, count)
        logits = self._products.floats(router, x)
        if self._router_bias is not None:
            logits = self._added(self._router_bias, logits)
        if self._correction is None:
            (odds,) = graph.node("Softmax", [logits], {"axis": -1})
            shares, choices = self._largest(odds, "shares")
        else:
            (scores,) = graph.node("Sigmoid", [logits])
            _, choices = self._largest(self._added(self._correction, scores), "corrected")
            (shares,) = graph.node("GatherElements", [scores, choices], {"axis": -1})
        if spec.norm_topk_prob:
            shares = self._normalized(shares)
        if spec.routed_scaling != 1:
            factor = self._in_fp32("routed_scaling", spec.routed_scaling)
            (shares,) = graph.node("Mul", [shares, factor])
        if self._branch is not None:
            (scales,) = graph.node("Gather", [self._by_expert(self._branch.share_scale), choices])
            (shares,) = graph.node("Mul", [shares, scales])
        return shares, choices

    def _added(self, tensor: str, scores: ir.Value) -> ir.Value:
        """Return scores [t, experts] with a stored value for each expert added."""
        return self._graph.node("Add", [scores, self._by_expert(tensor)])[0]

    def _by_expert(self, tensor: str) -> ir.Value:
        """Return a stored vector with a value for each expert, in fp32."""
        read = partial(linears.read_fp32, self._checkpoint, tensor)
        return self._graph.weight(tensor, (len(self._shape.experts),), read, ir.DataType.FLOAT)

    def _largest(self, scores: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """Return the largest scores of each token and whose they are, both [t, top_k]."""
        most = self._numbers("top_k", self._shape.top_k)
        names = [f"layer.{self._layer}.{part}" for part in (name, "choices")]
        largest, choices = self._graph.node("TopK", [scores, most], {"axis": -1}, outputs=names)
        return largest, choices

    def _normalized(self, shares: ir.Value) -> ir.Value:
        """Return shares divided by their sum; scores that are 0 throughout stay 0."""
        graph, last = self._graph, self._numbers("last_axis", -1)
        (total,) = graph.node("ReduceSum", [shares, last], {"keepdims": 1})
        if self._correction is not None:
            (total,) = graph.node("Add", [total, self._in_fp32("least_sum", LEAST_SUM)])
        return graph.node("Div", [shares, total])[0]

    def _sorted(self, numbers: ir.Value) -> ir.Value:
        """Return the order [n] that sorts numbers [n]; equal ones keep theirs."""
        (length,) = self._graph.node("Shape", [numbers])
        outputs = [f"{numbers.name}.sorted", f"{numbers.name}.order"]
        attributes = {"axis": -1, "largest": 0, "sorted": 1}
        return self._graph.node("TopK", [numbers, length], attributes, outputs=outputs)[1]

    def _lengths(self, flat: ir.Value) -> ir.Value:
        """Return how often each expert was chosen, [experts]."""
        graph, count = self._graph, len(self._shape.experts)
        (column,) = graph.node("Reshape", [flat, self._shape_of(-1, 1)])
        every = graph.constant(f"experts.{count}", np.arange(count, dtype=np.int64))
        (hits,) = graph.node("Equal", [column, every])
        (counted,) = graph.node("Cast", [hits], {"to": int(ir.DataType.INT64)})
        first = self._numbers("first_axis", 0)
        return graph.node("ReduceSum", [counted, first], {"keepdims": 0})[0]

    def _expert(self, number: int, x: ir.Value) -> ir.Value:
        """Return down(act(gate) · up) of one expert; zeros for one without units."""
        graph, span = self._graph, self._shape.expert_spans[number]
        if span.start == span.stop:
            kind = graph.float_type.numpy()
            return graph.node("Mul", [x, graph.constant("number.0", np.array(0, kind))])[0]
        units = self._active(self._gate_up(number, x), f"expert.{number}")
        return self._down(number, units)

    def _gate_up(self, number: int, x: ir.Value) -> ir.Value:
        linear = linears.expert_gate_up(self._checkpoint, self._layer, number)
        return self._products.linear(linear, x)

    def _down(self, number: int, units: ir.Value) -> ir.Value:
        linear = linears.expert_down(self._checkpoint, self._layer, number)
        return self._products.linear(linear, units)

    def _active(self, packed: ir.Value, name: str) -> ir.Value:
        """Return act(gate) · up of rows [gate | up], or clamped units."""
        graph = self._graph
        names = [f"layer.{self._layer}.{name}.{part}" for part in ("gate", "up")]
        gate, up = graph.node("Split", [packed], {"axis": -1, "num_outputs": 2}, outputs=names)
        spec = self._checkpoint.spec
        if spec.clamped_units is not None:
            return clamped_units(graph, spec.clamped_units, gate, up)
        active = activate(graph, spec.activation, gate)
        return graph.node("Mul", [active, up])[0]

    def _in_floats(self, x: ir.Value) -> ir.Value:
        """Return a value in fp32 as a float of the graph."""
        graph = self._graph
        if graph.float_type == ir.DataType.FLOAT:
            return x
        return graph.node("Cast", [x], {"to": int(graph.float_type)})[0]

    def _in_fp32(self, name: str, number: float) -> ir.Value:
        return self._graph.constant(name, np.array(number, np.float32))

    def _shape_of(self, *dims: int) -> ir.Value:
        name = "shape." + ".".join(map(str, dims))
        return self._graph.constant(name, np.array(dims, np.int64))

    def _numbers(self, name: str, *numbers: int) -> ir.Value:
        stem = f"{name}.{'.'.join(map(str, numbers))}"
        return self._graph.constant(stem, np.array(numbers, np.int64))
