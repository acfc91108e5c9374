"""Activations of the config (`hidden_act`, transformers' names) as ONNX operators."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import Attribute, GraphBuilder
from sgate_serve.architecture.gated_units import ClampedUnits
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.names import MICROSOFT


@dataclass(frozen=True)
class _Operator:
    op: str
    domain: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


# QuickGelu is x * sigmoid(alpha * x), so alpha 1 is SiLU.
_SILU = _Operator("QuickGelu", MICROSOFT, {"alpha": 1.0})
_TANH_GELU = _Operator("Gelu", "", {"approximate": "tanh"})
OPERATORS: Mapping[str, _Operator] = {
    "silu": _SILU,
    "swish": _SILU,
    "quick_gelu": _Operator("QuickGelu", MICROSOFT, {"alpha": 1.702}),
    "gelu": _Operator("Gelu"),
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": _Operator("Relu"),
    "tanh": _Operator("Tanh"),
}


def check_activation(name: str) -> None:
    """Raise EngineError if the graph has no operator for `hidden_act`."""
    if name not in OPERATORS:
        raise EngineError(
            f"the onnx engine has no operator for hidden_act {name!r} (it has: "
            f"{', '.join(sorted(OPERATORS))}); use --engine torch"
        )


def activate(graph: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    operator = OPERATORS[name]
    return graph.node(operator.op, [x], operator.attributes, domain=operator.domain)[0]


def clamped_units(graph: GraphBuilder, how: ClampedUnits, gate: ir.Value, up: ir.Value) -> ir.Value:
    """Return (u + 1) · g · sigmoid(alpha · g), with g and u clamped."""
    kind = graph.float_type.numpy()
    most, least, one = (
        graph.constant(f"number.{number}", np.array(number, kind))
        for number in (how.limit, -how.limit, 1.0)
    )
    (bounded,) = graph.node("Clip", [gate, None, most])
    (active,) = graph.node("QuickGelu", [bounded], {"alpha": how.alpha}, domain=MICROSOFT)
    (inside,) = graph.node("Clip", [up, least, most])
    (shifted,) = graph.node("Add", [inside, one])
    return graph.node("Mul", [shifted, active])[0]


def mlp_units(graph: GraphBuilder, spec: ModelSpec, index: int, packed: ir.Value) -> ir.Value:
    """Return act(gate) · up of the outputs [gate | up], or act(up) in families without a gate."""
    if not spec.family.is_gated:
        return activate(graph, spec.activation, packed)
    halves = [f"layer.{index}.gate", f"layer.{index}.up"]
    gate, up = graph.node("Split", [packed], {"axis": -1, "num_outputs": 2}, outputs=halves)
    return graph.node("Mul", [activate(graph, spec.activation, gate), up])[0]
