"""Apply a plan: the tensors of the small model, one at a time.

Headers come first, so that everything can be checked before a byte is written; then the arrays in
the same order. Peak memory is the largest tensor. Only `slice` lowering: rows and columns are cut.
"""

from collections.abc import Iterator

from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint import Array
from sgate_serve.folder import TensorHeader
from sgate_serve.plan import LinearPlan, Plan


def tensor_headers(masked: MaskedCheckpoint, plan: Plan) -> list[TensorHeader]:
    """Return the header of every tensor that the rewritten folder holds, in writing order."""
    shapes = plan.spec(masked.spec).tensor_shapes()
    return [TensorHeader(name, masked.dtype(name), shape) for name, shape in shapes.items()]


def rewritten_tensors(masked: MaskedCheckpoint, plan: Plan) -> Iterator[Array]:
    """Yield the surviving part of every masked tensor, in the order of `tensor_headers`."""
    linears = _linear_plans(masked, plan)
    for header in tensor_headers(masked, plan):
        linear = linears.get(header.name.rpartition(".")[0], LinearPlan(None, None))
        yield masked.read(header.name, linear.rows, linear.columns)


def _linear_plans(masked: MaskedCheckpoint, plan: Plan) -> dict[str, LinearPlan]:
    spec, plans = masked.spec, {}
    for layer in plan.layers:
        for role in layer.dense.linear_shapes(spec.hidden_size):
            linear = layer.linear(role)
            if linear is not None:
                plans[spec.family.linear(layer.index, role)] = linear
    return plans
