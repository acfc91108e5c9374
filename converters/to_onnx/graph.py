"""A thin builder over onnx_ir: named inputs, lazy weights, nodes in order, one model.

It does not depend on any architecture. Weights are read one at a time, when the file is written.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.names import IR_VERSION, MICROSOFT, OPSET

Dims = Sequence[int | str]
Attribute = int | float | str


class GraphBuilder:
    """Collects the parts of one graph; weights or constants of the same name share an initializer.

    Float weights and activations have the type `float_type`.
    """

    def __init__(self, float_type: ir.DataType = ir.DataType.FLOAT) -> None:
        self.float_type = float_type
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
        value = _typed_value(name, dtype, dims)
        self._inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, dims: Dims, dtype: ir.DataType | None = None
    ) -> None:
        """Make a value of type `dtype` an output, under its public name; None is `float_type`."""
        dtype = self.float_type if dtype is None else dtype
        value.name, value.shape, value.type = name, ir.Shape(dims), ir.TensorType(dtype)
        self._outputs.append(value)

    def output_in_fp32(self, value: ir.Value, name: str, dims: Dims) -> None:
        """Make a value in fp32 (see `in_fp32`) an output, under its public name."""
        self.output(value, name, dims, ir.DataType.FLOAT)

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        read: Callable[[], Array],
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Add an initializer; `read` returns its array when the file is written.

        Without a `dtype`, `read` returns float32, which is rounded to `float_type`. Writing raises
        EngineError, naming the weight, if a number is too large for it.
        """

        def tensor() -> ir.TensorProtocol:
            array = read()
            if dtype is None:
                array = _rounded(name, array, self.float_type)
            assert array.shape == shape and array.dtype == kind.numpy(), (name, array.shape, shape)
            return ir.tensor(array, name=name)

        kind = self.float_type if dtype is None else dtype
        if name not in self._initializers:
            lazy = ir.LazyTensor(tensor, kind, ir.Shape(shape), name=name)
            self._initializers[name] = ir.Value(name=name, const_value=lazy)
        return self._initializers[name]

    def constant(self, name: str, array: Array) -> ir.Value:
        if name not in self._initializers:
            tensor = ir.tensor(array, name=name)
            self._initializers[name] = ir.Value(name=name, const_value=tensor)
        return self._initializers[name]

    def in_fp32(self, x: ir.Value) -> ir.Value:
        """Return a value of type `float_type` in fp32."""
        if self.float_type == ir.DataType.FLOAT:
            return x
        return self.node("Cast", [x], {"to": int(ir.DataType.FLOAT)})[0]

    def from_fp32(self, x: ir.Value) -> ir.Value:
        """Return a value in fp32 in type `float_type`."""
        if self.float_type == ir.DataType.FLOAT:
            return x
        return self.node("Cast", [x], {"to": int(self.float_type)})[0]

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] = MappingProxyType({}),
        *,
        outputs: Sequence[str] = ("",),
        domain: str = "",
    ) -> list[ir.Value]:
        """Append one node and return its outputs, one for each given name.

        A single unnamed output gets a generated name. Among several, an empty name omits that
        optional output.
        """
        number = len(self._nodes)
        names = [f"{op}_{number}"] if tuple(outputs) == ("",) else outputs
        values = [ir.Value(name=name) for name in names]
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        name = f"{op}_{number}"
        self._nodes.append(ir.Node(domain, op, inputs, attrs, outputs=values, name=name))
        return values

    def model(self, metadata: Mapping[str, str]) -> ir.Model:
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name="sgate",
        )
        return ir.Model(graph, ir_version=IR_VERSION, metadata_props=dict(metadata))


def _rounded(name: str, array: Array, kind: ir.DataType) -> Array:
    """Round float32 numbers to `kind`; raise EngineError if one is out of range."""
    if array.dtype == kind.numpy():
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(kind.numpy())
    if not np.isfinite(rounded).all():
        raise EngineError(
            f"{name} holds {np.abs(array).max():.1e}, too large for a graph in {rounded.dtype}; "
            "give another --precision"
        )
    return rounded


def _typed_value(name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))
