"""The tensors that one layer of a model stores, by name and shape."""

from typing import TYPE_CHECKING

from sgate_serve.architecture.family import EXPERTS, HIDDEN, ONE
from sgate_serve.architecture.recurrent_layers import recurrent_sizes
from sgate_serve.architecture.shapes import Lowered

if TYPE_CHECKING:
    from sgate_serve.architecture.spec import ModelSpec

IN_INDEX, OUT_INDEX = "in_index", "out_index"


def layer_tensors(spec: "ModelSpec", index: int) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of a layer."""
    layer, shapes = spec.layers[index], dict[str, tuple[int, ...]]()
    for norm in spec.norms(index):
        shapes[f"{norm}.weight"] = (spec.hidden_size,)
        if spec.has_norm_bias:
            shapes[f"{norm}.bias"] = (spec.hidden_size,)
    for norm, size in spec.head_norm_sizes(index).items():
        shapes[f"{norm}.weight"] = (size,)
    sizes = {EXPERTS: len(layer.experts), ONE: 1, HIDDEN: spec.hidden_size}
    sizes |= recurrent_sizes(layer, spec.kernel)
    for name, axes in (spec.router_tensors(index) | spec.recurrent_tensors(index)).items():
        shapes[name] = tuple(sizes[axis] for axis in axes)
    return shapes | _linears(spec, index)


def _linears(spec: "ModelSpec", index: int) -> dict[str, tuple[int, ...]]:
    linears, shapes = spec.linear_shapes(index), dict[str, tuple[int, ...]]()
    for module, roles in spec.modules(index).items():
        stored, lowered = spec.module_shape(index, module), spec.lowered.get(module, Lowered())
        shapes[f"{module}.weight"] = stored[::-1] if spec.family.is_transposed else stored
        if spec.has_bias(index, roles[0]):
            shapes[f"{module}.bias"] = (sum(linears[role][0] for role in roles),)
        if lowered.rows is not None:
            shapes[f"{module}.{OUT_INDEX}"] = (lowered.rows,)
        if lowered.columns is not None:
            shapes[f"{module}.{IN_INDEX}"] = (lowered.columns,)
    return shapes
