"""Find the zeros of a masked dense model: from closed gates alone, or from the weights."""

from collections.abc import Mapping

import numpy as np

from converters.rules.facts import Zeros
from sgate_serve.checkpoint import Array
from sgate_serve.plan import Gate, Masks
from sgate_serve.spec import ModelSpec

Biases = Mapping[str, Array]


def zeros_of_masks(spec: ModelSpec, masks: Masks, biases: Biases) -> list[dict[str, Zeros]]:
    """Return each layer's zeros by role, from gates that are exactly 0 and from bias values.

    `biases` maps module names to (masked) bias vectors; a bias the spec has but `biases` lacks
    counts as live. Weights are taken to be nonzero where no gate closes them.
    """
    return [
        {
            role: _zeros_of_gate(
                shape,
                masks.get(spec.family.linear(index, role), Gate()),
                biases.get(spec.family.linear(index, role)),
                spec.has_bias(index, role),
            )
            for role, shape in layer.linear_shapes(spec.hidden_size).items()
        }
        for index, layer in enumerate(spec.layers)
    ]


def zeros_of_weight(weight: Array, bias: Array | None) -> Zeros:
    """Return the zero rows and columns of one (out, in) matrix and the zeros of its bias."""
    nonzero = weight != 0
    return Zeros(
        rows=~nonzero.any(axis=1),
        columns=~nonzero.any(axis=0),
        bias=np.ones(weight.shape[0], np.bool_) if bias is None else np.asarray(bias == 0),
    )


def _zeros_of_gate(shape: tuple[int, int], gate: Gate, bias: Array | None, has_bias: bool) -> Zeros:
    rows = np.zeros(shape[0], np.bool_) if gate.rows is None else gate.rows == 0
    columns = np.zeros(shape[1], np.bool_) if gate.columns is None else gate.columns == 0
    if not has_bias:
        bias_zeros = np.ones(shape[0], np.bool_)
    elif bias is None:
        bias_zeros = np.zeros(shape[0], np.bool_)
    else:
        bias_zeros = np.asarray(bias == 0)
    # A row gate closes the bias with the row: y = (W x + b) ∘ r.
    return Zeros(rows, columns, bias_zeros | rows if gate.rows is not None else bias_zeros)
