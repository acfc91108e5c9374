"""Find the zero rows, columns and biases of linears, from closed gates or from the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converters.float_bits import is_zero_along, zero_lines
from converters.rules.facts import Flags, Zeros
from sgate_serve.architecture.family import DOWN, OUTPUT
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.plan import Gate, Masks

Biases = Mapping[str, Array]


def zeros_of_masks(spec: ModelSpec, masks: Masks, biases: Biases) -> tuple[dict[str, Zeros], ...]:
    """Return each layer's zeros by role, from gates that are exactly 0 and from bias values.

    `biases` maps module names to (masked) bias vectors. A bias missing from it counts as nonzero
    where the spec has one. Weights count as nonzero where no gate closes them.
    """
    return tuple(
        {
            role: _zeros_of_gates(spec, index, role, masks, biases)
            for role in spec.linear_shapes(index)
        }
        for index in range(len(spec.layers))
    )


def closed_experts_of_masks(spec: ModelSpec, masks: Masks) -> dict[str, Flags]:
    """Return flags over the experts that a router must never choose, by the router's name."""
    closed = {}
    for index, layer in enumerate(spec.layers):
        if layer.experts and spec.family.mixture is not None:
            router = spec.family.router_name(index)
            rows = masks.get(router, Gate()).rows
            if rows is not None and not rows.all():
                closed[router] = rows == 0
    return closed


def zeros_of_weight(weight: Array, bias: Array | None) -> Zeros:
    """Return the zero rows and columns of one (out, in) matrix and the zeros of its bias."""
    rows, columns, num_zero = zero_lines(weight)
    lines = weight.size - int((~rows).sum()) * int((~columns).sum())
    return Zeros(
        rows=rows,
        columns=columns,
        bias=np.ones(weight.shape[0], np.bool_) if bias is None else np.asarray(bias == 0),
        scattered=num_zero - lines,
    )


def zeros_on(weight: Array, live_rows: Flags, live_columns: Flags) -> Zeros:
    """Return the rows and columns that are zero on the living part of a matrix.

    Rows and columns that are not alive count as zero.
    """
    rows, columns = ~live_rows, ~live_columns
    rows[live_rows] = is_zero_along(weight[np.ix_(live_rows, live_columns)], axis=1)
    columns[live_columns] = is_zero_along(weight[np.ix_(live_rows, live_columns)], axis=0)
    return Zeros(rows, columns, np.zeros_like(rows))


def joined(parts: Sequence[Zeros], role: str) -> Zeros:
    """Return the zeros of a role whose units several modules hold, one after another."""
    if len(parts) == 1:
        return parts[0]
    rows, columns = [part.rows for part in parts], [part.columns for part in parts]
    bias = [part.bias for part in parts]
    if role == DOWN:
        found = Zeros(np.all(rows, axis=0), np.concatenate(columns), np.all(bias, axis=0))
    else:
        found = Zeros(np.concatenate(rows), np.all(columns, axis=0), np.concatenate(bias))
    nonzero = sum(_open(part) - part.scattered for part in parts)
    return replace(found, scattered=_open(found) - nonzero)


def _open(zeros: Zeros) -> int:
    """Count the entries outside zero rows and columns."""
    return int((~zeros.rows).sum()) * int((~zeros.columns).sum())


def _zeros_of_gates(spec: ModelSpec, index: int, role: str, masks: Masks, biases: Biases) -> Zeros:
    shape = spec.linear_shapes(index)[role]
    parts = spec.parts(index, role)
    found = []
    for part in parts:
        size = part.units.stop - part.units.start
        own = (shape[0], size) if role in (OUTPUT, DOWN) else (size, shape[1])
        gate, bias = masks.get(part.module, Gate()), biases.get(part.module)
        rows = None if gate.rows is None else gate.rows[part.rows]
        if bias is not None:
            bias = bias[part.rows]
        has_bias = spec.has_bias(index, role)
        found.append(_zeros_of_gate(Gate(rows, gate.columns), own, bias, has_bias))
    return joined(found, role)


def _zeros_of_gate(gate: Gate, shape: tuple[int, int], bias: Array | None, has_bias: bool) -> Zeros:
    rows, columns = _closed(gate.rows, shape[0]), _closed(gate.columns, shape[1])
    if not has_bias:
        bias_zeros = np.ones(shape[0], np.bool_)
    elif bias is None:
        # A row gate multiplies the bias too, y = (W x + b) ∘ r; a column gate does not.
        bias_zeros = rows
    else:
        bias_zeros = rows | (bias == 0)
    # If all rows are closed, every column is zero, and the other way round.
    return Zeros(rows | columns.all(), columns | rows.all(), bias_zeros)


def _closed(gate: NDArray[np.float32] | None, size: int) -> NDArray[np.bool_]:
    return np.zeros(size, np.bool_) if gate is None else gate == 0
