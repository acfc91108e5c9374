"""Biases of the rewritten model: the masked ones plus every constant that a plan folds into them.

Sums run in float64 and are rounded once. A bias that took constants over is stored in fp32, or in
float64 where it was, so that the fold loses nothing to a 16-bit checkpoint's rounding.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converters.masked import MaskedCheckpoint
from converters.rules.stream import norm_before
from sgate_serve.architecture.activations import apply_activation
from sgate_serve.architecture.family import (
    BLOCKS,
    DOWN,
    GATE,
    KEY,
    OUTPUT,
    QUERY,
    READERS,
    UP,
    VALUE,
    WRITERS,
)
from sgate_serve.plan import Fold, Merge, Plan
from sgate_serve.plan.placement import dead_rows, dims_of_group

Floats = NDArray[np.float64]


class Constants:
    """The biases and other vectors that a plan changes, computed from the masked model."""

    def __init__(self, masked: MaskedCheckpoint, plan: Plan) -> None:
        self.masked, self.plan, self.family = masked, plan, masked.spec.family

    @cached_property
    def changed(self) -> set[str]:
        """Names of the tensors that take constants over."""
        names = set()
        for fold in self.plan.folds:
            if fold.role is not None:
                names.add(f"{self.family.linear(fold.layer, fold.role)}.bias")
            elif fold.source == "head_units":
                names.add(f"{self._outer}.bias")
            else:
                names.add(fold.target)
        return names | {
            f"{self.family.linear(merge.layer, QUERY)}.bias"
            for merge in self.plan.merges
            if merge.axis == "key_dims"
        }

    def bias(self, layer: int, role: str) -> Floats:
        """Return a role's bias [rows], in the original coordinates."""
        value = self._before_merge(layer, role)
        if role in (QUERY, KEY, VALUE):
            value = np.where(dead_rows(self.plan.layers[layer], role), 0.0, value)
        if role == QUERY:
            value[[merge.indices[0] for merge in self.merged(layer, "key_dims")]] = 1.0
        for fold in self.folds(layer, "mlp_units") if role == DOWN else ():
            units = np.asarray(fold.indices)
            value = value + self._columns(layer, DOWN, units) @ self._units(layer)[units]
        for fold in self.folds(layer, "value_dims") if role == OUTPUT else ():
            value = value + self._attended(layer, fold)
        if role in WRITERS.values():
            value = value + self._moved(f"{self.family.linear(layer, role)}.bias")
        return value

    def added_to(self, tensor: str) -> Floats | None:
        """Return what is added to every row of a tensor outside the linears, or None."""
        if tensor == f"{self._outer}.bias":
            return self._units_on_top()
        return self._moved(tensor) if tensor in self.changed else None

    def merged(self, layer: int, axis: Literal["heads", "key_dims"]) -> list[Merge]:
        """Return the merges of a layer whose first index is still alive."""
        alive = set(self.plan.layers[layer].survivors(axis))
        merges = [m for m in self.plan.merges if m.layer == layer and m.axis == axis]
        return [merge for merge in merges if merge.indices[0] in alive]

    def merged_key(self, layer: int, merge: Merge) -> Floats:
        """Return the key row, with its bias last, that stands for several: Σ b_q · k."""
        rows = np.asarray(merge.indices)
        queries = self._before_merge(layer, QUERY)[rows]
        keys = self.masked.read_role(layer, KEY, rows).astype(np.float64)
        both = np.column_stack([keys, self._before_merge(layer, KEY)[rows]])
        combined: Floats = queries @ both
        return combined

    def _before_merge(self, layer: int, role: str) -> Floats:
        value = self._own(layer, role)
        for fold in self.folds(layer, f"{role}.columns"):
            value = value + self._passed_by_norm(layer, role, fold)
        return value

    def _own(self, layer: int, role: str) -> Floats:
        own = self.masked.read_bias(layer, role)
        rows = self.masked.spec.linear_shapes(layer)[role][0]
        return np.zeros(rows) if own is None else own.astype(np.float64)

    def folds(self, layer: int, source: str) -> list[Fold]:
        """Return what one source of a layer folds away."""
        return [f for f in self.plan.folds if f.layer == layer and f.source == source]

    def _columns(self, layer: int, role: str, columns: NDArray[Any]) -> Floats:
        return self.masked.read_role(layer, role, columns=columns).astype(np.float64)

    def _passed_by_norm(self, layer: int, role: str, fold: Fold) -> Floats:
        block = next(block for block in BLOCKS if role in READERS[block])
        norm = norm_before(self.family, layer, block)
        columns = np.asarray(fold.indices)
        passed = self.masked.read(f"{norm}.bias").astype(np.float64)[columns]
        return np.asarray(self._columns(layer, role, columns) @ passed)

    def _units(self, layer: int) -> Floats:
        """Return the value of every MLP unit whose rows are zero: act(b), or act(b_gate) · b_up."""
        activation, up = self.masked.spec.activation, self.bias(layer, UP)
        if not self.family.is_gated:
            return apply_activation(activation, up)
        return apply_activation(activation, self.bias(layer, GATE)) * up

    def _attended(self, layer: int, fold: Fold) -> Floats:
        """Return what constant value dimensions put out, over all query heads that attend to them.

        Heads that died before have zero columns or read dead dimensions only: they add nothing.
        """
        constants = np.zeros(self.masked.spec.linear_shapes(layer)[VALUE][0])
        dims = np.asarray(fold.indices)
        constants[dims] = self._before_merge(layer, VALUE)[dims]
        spread = constants[dims_of_group(self.plan.layers[layer], OUTPUT)]
        return np.asarray(self.masked.read_role(layer, OUTPUT).astype(np.float64) @ spread)

    def _moved(self, tensor: str) -> Floats:
        """Return the constants of later blocks that have moved into a tensor."""
        moved = np.zeros(self.masked.spec.hidden_size)
        for fold in self.plan.folds:
            if fold.target == tensor:
                moved = moved + self.bias(fold.layer, WRITERS[fold.source])
        return moved

    @property
    def _outer(self) -> str | None:
        dense = self.masked.spec.head.dense
        return None if dense is None else dense.outer

    def _units_on_top(self) -> Floats:
        dense = self.masked.spec.head.dense
        assert dense is not None
        weight = self.masked.read(f"{dense.outer}.weight").astype(np.float64)
        bias = self.masked.read(f"{dense.inner}.bias").astype(np.float64)
        added = np.zeros(len(weight))
        for fold in self.plan.folds:
            if fold.source == "head_units":
                units = np.asarray(fold.indices)
                added += weight[:, units] @ apply_activation(dense.activation, bias[units])
        return added
