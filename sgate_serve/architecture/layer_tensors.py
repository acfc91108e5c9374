"""The tensors that the files of a model hold for one layer, with their shapes.

The experts of a mixture are tensors of their own here, also where stock files stack them.
"""

from typing import TYPE_CHECKING

from sgate_serve.architecture.family import EXPERTS, HIDDEN, ONE
from sgate_serve.architecture.recurrent_layers import recurrent_sizes
from sgate_serve.architecture.shapes import Lowered

if TYPE_CHECKING:
    from sgate_serve.architecture.spec import ModelSpec

IN_INDEX, OUT_INDEX = "in_index", "out_index"

Shapes = dict[str, tuple[int, ...]]


def layer_tensors(spec: "ModelSpec", index: int) -> Shapes:
    """Return name → shape of every tensor of a layer, in the order that files have them."""
    layer, shapes = spec.layers[index], Shapes()
    for norm in spec.norms(index):
        shapes[f"{norm}.weight"] = (spec.hidden_size,)
        if spec.has_norm_bias:
            shapes[f"{norm}.bias"] = (spec.hidden_size,)
    for norm, size in spec.head_norm_sizes(index).items():
        shapes[f"{norm}.weight"] = (size,)
    if (sinks := spec.sinks(index)) is not None:
        shapes[sinks] = (layer.num_heads,)
    if (scale := spec.family.scale_name(index)) is not None:
        shapes[scale] = (1,)
    sizes = {EXPERTS: len(layer.experts), ONE: 1, HIDDEN: spec.hidden_size}
    sizes |= recurrent_sizes(layer, spec.kernel)
    for name, axes in (spec.router_tensors(index) | spec.recurrent_tensors(index)).items():
        shapes[name] = tuple(sizes[axis] for axis in axes)
    for module, roles in spec.modules(index).items():
        shapes |= _linear_tensors(spec, index, module, roles)
    return shapes


def _linear_tensors(spec: "ModelSpec", index: int, module: str, roles: tuple[str, ...]) -> Shapes:
    stored, lowered = spec.module_shape(index, module), spec.lowered.get(module, Lowered())
    shapes: Shapes = {f"{module}.weight": stored[::-1] if spec.family.is_transposed else stored}
    if spec.has_bias(index, roles[0]):
        shapes[f"{module}.bias"] = (_num_outputs(spec, index, module),)
    if lowered.rows is not None:
        shapes[f"{module}.{OUT_INDEX}"] = (lowered.rows,)
    if lowered.columns is not None:
        shapes[f"{module}.{IN_INDEX}"] = (lowered.columns,)
    return shapes


def _num_outputs(spec: "ModelSpec", index: int, module: str) -> int:
    """Return how many values a linear gives, those of rows that are not stored included."""
    roles = spec.modules(index)[module]
    if spec.expert_of(module) is not None:
        return spec.module_shape(index, module)[0]
    dims = spec.linear_shapes(index)
    return sum(dims[role][0] for role in roles)
