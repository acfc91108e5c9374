"""Find the zeros of a masked dense model: from closed gates alone, or from the weights."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from converters.float_bits import is_zero_along
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
    return Zeros(
        rows=is_zero_along(weight, axis=1),
        columns=is_zero_along(weight, axis=0),
        bias=np.ones(weight.shape[0], np.bool_) if bias is None else np.asarray(bias == 0),
    )


def _zeros_of_gate(shape: tuple[int, int], gate: Gate, bias: Array | None, has_bias: bool) -> Zeros:
    rows, columns = _closed(gate.rows, shape[0]), _closed(gate.columns, shape[1])
    if not has_bias:
        bias_zeros = np.ones(shape[0], np.bool_)
    elif bias is None:
        # A row gate closes the bias with the row, y = (W x + b) ∘ r; a column gate does not.
        bias_zeros = rows
    else:
        bias_zeros = rows | (bias == 0)
    # A matrix that is closed throughout on one side is zero on the other side too.
    return Zeros(rows | columns.all(), columns | rows.all(), bias_zeros)


def _closed(gate: NDArray[np.float32] | None, size: int) -> NDArray[np.bool_]:
    return np.zeros(size, np.bool_) if gate is None else gate == 0
