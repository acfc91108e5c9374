"""Run the tables of rules to a fixpoint: apply each finding, and record it for the Plan.

The state only shrinks, so the loop ends. Which rules there are is `converters.rules.compile`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from converters.rules.facts import Flags, ModelFacts
from converters.rules.findings import (
    Finding,
    LayerRule,
    LayerView,
    ModelFinding,
    ModelRule,
    ModelView,
    Move,
)
from converters.rules.layer_state import Columns, LayerAxis, LayerState
from converters.rules.merges import joined, merges_of, with_merge
from converters.rules.rescan import Rescanner
from converters.rules.stream import unwritten_before
from sgate_serve.architecture.family import KEY, WRITERS
from sgate_serve.architecture.shared_keys import sharing_layers
from sgate_serve.plan import (
    BlockFold,
    ColumnFold,
    Fold,
    HeadUnitFold,
    Indices,
    LayerFold,
    Merge,
    Removal,
    UnitFold,
    ValueFold,
)


class Fixpoint:
    """The state of one compilation: `run` it, then read it."""

    def __init__(
        self,
        facts: ModelFacts,
        layer_rules: Mapping[str, LayerRule],
        model_rules: Mapping[str, ModelRule],
        *,
        may_add_biases: bool = True,
    ) -> None:
        spec = facts.spec
        self._may_add_biases = may_add_biases
        self.facts, self.layer_rules, self.model_rules = facts, layer_rules, model_rules
        self.layers = [LayerState.of(spec, i, zeros) for i, zeros in enumerate(facts.layers)]
        self.hidden = np.ones(spec.hidden_size, np.bool_)
        self.head_units = np.ones(spec.head_units, np.bool_)
        self.folds: list[Fold] = []
        self.merges: list[Merge] = []
        self.removals: list[Removal] = []
        self.layer_removals: list[list[Removal]] = [[] for _ in self.layers]
        unembedded = facts.unembedded
        self._embedded = self.hidden if unembedded is None else ~unembedded
        self._rescanner = Rescanner(facts)
        self._sharing = list(sharing_layers(spec.layers, spec.windows))

    @property
    def num_weights(self) -> int:
        zeros = (zeros for layer in self.layers for zeros in layer.zeros.values())
        return sum(one.rows.size * one.columns.size for one in zeros)

    def run(self) -> None:
        """Apply all rules until none finds more."""
        while self.run_layer_rules() or self.run_model_rules() or self._rescan():
            pass

    def run_layer_rules(self) -> bool:
        """Run the layer rules on each layer until they find no more; say whether they found any."""
        changed = False
        before = unwritten_before(self.facts, self.layers, self._embedded)
        for index, unwritten in enumerate(before):
            while self._run_on_layer(index, unwritten):
                changed = True
        return changed

    def _run_on_layer(self, index: int, unwritten: Mapping[str, Flags]) -> bool:
        changed = False
        for name, rule in self.layer_rules.items():
            sharing = [self.layers[one] for one in self._sharing[index]]
            for finding in rule(LayerView(self.facts, self.layers[index], unwritten, sharing)):
                changed |= self._remove_from_layer(index, name, finding)
        return changed

    def run_model_rules(self) -> bool:
        """Run each model rule once; say whether any found something."""
        changed = False
        for name, rule in self.model_rules.items():
            for finding in rule(ModelView(self.facts, tuple(self.layers), self._embedded)):
                if isinstance(finding, Move):
                    self._move(finding)
                    changed = True
                else:
                    changed |= self._remove_from_model(name, finding)
        return changed

    def _remove_from_layer(self, index: int, rule: str, finding: Finding) -> bool:
        """Remove what a finding flags in a layer; say whether any of it was still alive."""
        layer = self.layers[index]
        new, constant = self._removable(layer, finding)
        if not new.any():
            return False
        if constant.any():
            fold = _layer_fold(finding.axis, index, indices_of(constant))
            self.folds.append(fold)
            columns = layer.columns_of(finding.axis, constant)
            layer = layer.with_folded(fold.role, self._reached(layer, fold.role, columns))
        for merge in finding.merges:
            self.merges = joined(self.merges, merge)
            layer = with_merge(layer, merge)
        self.layers[index] = layer.without(finding.axis, new)
        removal = Removal(str(finding.axis), indices_of(new), rule, finding.cause)
        self.layer_removals[index].append(removal)
        return True

    def _removable(self, layer: LayerState, finding: Finding) -> tuple[Flags, Flags]:
        """Flag what a finding removes, and what of that leaves a constant.

        What would leave a constant stays if no bias can receive it and none may be added.
        """
        new: Flags = finding.dead & layer.alive(finding.axis)
        if finding.constant is None:
            return new, np.zeros_like(new)
        constant = new & finding.constant
        role = _layer_fold(finding.axis, layer.index, ()).role
        if self._may_add_biases or layer.spec.has_bias(layer.index, role):
            return new, constant
        return new & ~constant, np.zeros_like(new)

    def _reached(self, layer: LayerState, role: str, columns: Flags) -> Flags:
        """Flag the rows of a matrix that are not zero on the given columns."""
        zeros = layer.zeros[role]
        # The stored key rows are not those of a merged key.
        if self.facts.scan is None or not zeros.scattered or role == KEY:
            return ~zeros.rows
        return ~zeros.rows & ~self.facts.scan(layer.index, role, ~zeros.rows, columns).rows

    def _remove_from_model(self, rule: str, finding: ModelFinding) -> bool:
        """Remove residual dimensions or units on top, but never the last of them."""
        alive: Flags = getattr(self, finding.axis)
        new = finding.dead & alive
        if not new.any() or (new == alive).all():
            return False
        if finding.axis == "hidden":
            self.layers = [layer.without("hidden", new) for layer in self.layers]
        setattr(self, finding.axis, alive & ~new)
        if finding.constant is not None:
            assert finding.axis == "head_units", "a constant residual dimension stays"
            self.folds.append(HeadUnitFold(indices_of(new & finding.constant)))
        self.removals.append(Removal(finding.axis, indices_of(new), rule, finding.cause))
        return True

    def _move(self, move: Move) -> None:
        """Move the constant of a block without units to its receiver."""
        layer, receiver = self.layers[move.layer], move.receiver
        self.folds.append(BlockFold(move.layer, move.block, receiver.tensor))
        self.layers[move.layer] = replace(layer, moved=layer.moved | {move.block})
        if receiver.writer is not None:
            index, block = receiver.writer
            self.layers[index] = self.layers[index].with_folded(WRITERS[block], move.dims)
        elif receiver.tensor.endswith(".weight"):
            self._embedded = self._embedded | move.dims

    def _rescan(self) -> bool:
        """Rescan every matrix; say whether any has new zero rows or columns that are alive."""
        changed = False
        for index, zeros in enumerate(self.facts.layers):
            for role in zeros:
                layer = self.layers[index]
                merges = merges_of(self.merges, layer, role)
                self.layers[index], is_new = self._rescanner.rescan(layer, role, merges)
                changed |= is_new
        return changed


def indices_of(flags: Flags) -> Indices:
    """Return the positions of set flags, in the order of the flattened array."""
    return tuple(_integers(flags.size)[flags.reshape(-1)])


@cache
def _integers(size: int) -> NDArray[np.object_]:
    """Return 0 to size - 1 as shared Python integers: a 70B model's plan names millions."""
    return np.arange(size).astype(object)


def _layer_fold(axis: LayerAxis, layer: int, indices: Indices) -> LayerFold:
    if isinstance(axis, Columns):
        return ColumnFold(layer, axis.role, indices)
    assert axis in ("mlp_units", "value_dims"), axis
    return UnitFold(layer, indices) if axis == "mlp_units" else ValueFold(layer, indices)
