"""The tensors that the files of a model hold, with their shapes.

The experts of a mixture are tensors of their own here, also where stock files stack them.
"""

from typing import TYPE_CHECKING

from sgate_serve.architecture.family import (
    EXPERTS,
    HEAD_UNITS,
    HIDDEN,
    LABEL_OUTPUTS,
    ONE,
    POSITIONS,
    TYPES,
    VOCAB,
)
from sgate_serve.architecture.layer_inputs import INPUT, INPUT_VOCAB, INPUTS
from sgate_serve.architecture.recurrent_layers import recurrent_sizes
from sgate_serve.architecture.shapes import Lowered

if TYPE_CHECKING:
    from sgate_serve.architecture.spec import ModelSpec

IN_INDEX, OUT_INDEX = "in_index", "out_index"

Shapes = dict[str, tuple[int, ...]]


def model_tensors(spec: "ModelSpec") -> Shapes:
    """Return name → shape of every tensor of a model, in the order that files have them."""
    sizes, head = _axis_sizes(spec), spec.family.head
    outside = {name: tuple(sizes[axis] for axis in axes) for name, axes in spec.outside.items()}
    final = f"{spec.family.final_norm}."
    shapes = {name: shape for name, shape in outside.items() if not name.startswith(final)}
    for index in range(len(spec.layers)):
        shapes |= layer_tensors(spec, index)
    # The final norm and the head come last, as in the model.
    shapes |= {name: shape for name, shape in outside.items() if name not in shapes}
    for name, axes in spec.head.tensors.items():
        if name != f"{head}.weight" or not spec.tied_head:
            shapes[name] = tuple(sizes[axis] for axis in axes)
    if head in spec.extra_biases:
        shapes[f"{head}.bias"] = (spec.vocab_size,)
    return shapes


def _axis_sizes(spec: "ModelSpec") -> dict[str, int]:
    return {
        VOCAB: spec.vocab_size,
        HIDDEN: spec.hidden_size,
        POSITIONS: spec.num_positions,
        TYPES: spec.num_types,
        LABEL_OUTPUTS: spec.num_labels,
        HEAD_UNITS: spec.head_units,
        INPUT_VOCAB: spec.input_vocab,
        INPUTS: spec.input_width * len(spec.layers),
        INPUT: spec.input_width,
    }


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
    sizes = _axis_sizes(spec) | {EXPERTS: len(layer.experts), ONE: 1}
    sizes |= recurrent_sizes(layer, spec.kernel)
    for name, axes in spec.named_tensors(index).items():
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
