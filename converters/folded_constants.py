"""The biases of the rewritten model: those of the masked model plus the constants folded into them.

Sums are computed in float64 and rounded once. A bias that receives constants is stored in fp32, or
in float64 where it was: rounding to 16 bits would make the fold inexact.
"""

from functools import cached_property
from typing import Any, Literal, TypeVar

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
from sgate_serve.plan import (
    BlockFold,
    ColumnFold,
    HeadUnitFold,
    LayerFold,
    Merge,
    Plan,
    UnitFold,
    ValueFold,
    receiving_tensor,
)
from sgate_serve.plan.placement import dead_rows, dims_of_group

Floats = NDArray[np.float64]
FoldType = TypeVar("FoldType", bound=LayerFold)


class FoldedConstants:
    """The vectors that folds and merges change, computed from the masked model."""

    def __init__(self, masked: MaskedCheckpoint, plan: Plan) -> None:
        self.masked, self.plan, self.family = masked, plan, masked.spec.family

    @cached_property
    def changed(self) -> set[str]:
        """Names of the tensors that receive constants, and of query biases that merges change."""
        received = {receiving_tensor(fold, self.masked.spec) for fold in self.plan.folds}
        return received | {
            f"{self.family.linear(merge.layer, QUERY)}.bias"
            for merge in self.plan.merges
            if merge.axis == "key_dims"
        }

    def bias(self, layer: int, role: str) -> Floats:
        """Return a role's bias [rows], in the original coordinates."""
        value = self._before_merge(layer, role)
        if role in (QUERY, KEY, VALUE) and not self.plan.layers[layer].dense.is_recurrent:
            value = np.where(dead_rows(self.plan.layers[layer], role), 0.0, value)
        if role == QUERY:
            value[[merge.indices[0] for merge in self.merged(layer, "key_dims")]] = 1.0
        for units in self._folds(UnitFold, layer, role):
            value = value + self._folded_units(units)
        for dims in self._folds(ValueFold, layer, role):
            value = value + self._folded_values(dims)
        if role in WRITERS.values():
            value = value + self._moved(f"{self.family.linear(layer, role)}.bias")
        return value

    def added_to(self, tensor: str) -> Floats | None:
        """Return what is added to every row of a tensor outside the linears, or None."""
        if tensor not in self.changed:
            return None
        dense = self.masked.spec.head.dense
        if dense is not None and tensor == f"{dense.outer}.bias":
            return self._folded_head_units()
        return self._moved(tensor)

    def merged(self, layer: int, axis: Literal["heads", "key_dims"]) -> list[Merge]:
        """Return the merges of a layer whose first index is still alive."""
        alive = set(self.plan.layers[layer].survivors(axis))
        merges = [m for m in self.plan.merges if m.layer == layer and m.axis == axis]
        return [merge for merge in merges if merge.indices[0] in alive]

    def merged_key(self, layer: int, merge: Merge) -> Floats:
        """Return the key row of merged dimensions, its bias as the last element: Σ b_q · k."""
        rows = np.asarray(merge.indices)
        queries = self._before_merge(layer, QUERY)[rows]
        keys = self.masked.read_role(layer, KEY, rows).astype(np.float64)
        both = np.column_stack([keys, self._before_merge(layer, KEY)[rows]])
        combined: Floats = queries @ both
        return combined

    def folded_columns(self, layer: int, role: str) -> NDArray[np.int64]:
        """Return the columns of a role that have been folded into its bias."""
        folds = self._folds(ColumnFold, layer, role)
        return np.array([i for fold in folds for i in fold.indices], np.int64)

    def _folds(self, kind: type[FoldType], layer: int, role: str) -> list[FoldType]:
        """Return the folds of one kind into a role's bias."""
        folds = (fold for fold in self.plan.folds if isinstance(fold, kind))
        return [fold for fold in folds if (fold.layer, fold.role) == (layer, role)]

    def _before_merge(self, layer: int, role: str) -> Floats:
        value = self._stored_bias(layer, role)
        for fold in self._folds(ColumnFold, layer, role):
            value = value + self._folded_inputs(fold)
        return value

    def _stored_bias(self, layer: int, role: str) -> Floats:
        stored = self.masked.read_bias(layer, role)
        rows = self.masked.spec.linear_shapes(layer)[role][0]
        return np.zeros(rows) if stored is None else stored.astype(np.float64)

    def _columns(self, layer: int, role: str, columns: NDArray[Any]) -> Floats:
        return self.masked.read_role(layer, role, columns=columns).astype(np.float64)

    def _folded_inputs(self, fold: ColumnFold) -> Floats:
        """Return what columns output for the bias of the norm before."""
        block = next(block for block in BLOCKS if fold.role in READERS[block])
        norm = norm_before(self.family, fold.layer, block)
        assert norm is not None, "without a norm before the block no column is a constant"
        columns = np.asarray(fold.indices)
        inputs = self.masked.read(f"{norm}.bias").astype(np.float64)[columns]
        return np.asarray(self._columns(fold.layer, fold.role, columns) @ inputs)

    def _folded_units(self, fold: UnitFold) -> Floats:
        """Return what the down projection outputs for constant units."""
        units = np.asarray(fold.indices)
        outputs: Floats = self._columns(fold.layer, DOWN, units) @ self._units(fold.layer)[units]
        return outputs

    def _units(self, layer: int) -> Floats:
        """Return every MLP unit as if its rows were zero: act(b), or act(b_gate) · b_up."""
        activation, up = self.masked.spec.activation, self.bias(layer, UP)
        if not self.family.is_gated:
            return apply_activation(activation, up)
        return apply_activation(activation, self.bias(layer, GATE)) * up

    def _folded_values(self, fold: ValueFold) -> Floats:
        """Return what constant value dimensions output, summed over the query heads.

        Heads removed before have zero columns or read only dead dimensions, so they add nothing.
        """
        layer = fold.layer
        constants = np.zeros(self.masked.spec.linear_shapes(layer)[VALUE][0])
        dims = np.asarray(fold.indices)
        constants[dims] = self._before_merge(layer, VALUE)[dims]
        spread = constants[dims_of_group(self.plan.layers[layer], OUTPUT)]
        return np.asarray(self.masked.read_role(layer, OUTPUT).astype(np.float64) @ spread)

    def _moved(self, tensor: str) -> Floats:
        """Return the sum of the block constants that have moved into a tensor."""
        moved = np.zeros(self.masked.spec.hidden_size)
        for fold in self.plan.folds:
            if isinstance(fold, BlockFold) and fold.target == tensor:
                moved = moved + self.bias(fold.layer, WRITERS[fold.block])
        return moved

    def _folded_head_units(self) -> Floats:
        """Return what the outer linear on top outputs for constant units."""
        dense = self.masked.spec.head.dense
        assert dense is not None, "this model has no units on top"
        weight = self.masked.read(f"{dense.outer}.weight").astype(np.float64)
        bias = self.masked.read(f"{dense.inner}.bias").astype(np.float64)
        added = np.zeros(len(weight))
        for fold in self.plan.folds:
            if isinstance(fold, HeadUnitFold):
                units = np.asarray(fold.indices)
                added += weight[:, units] @ apply_activation(dense.activation, bias[units])
        return added
