"""Rules to a fixpoint: what lives, what each rule found, and which constants moved where.

State shrinks with every finding, so the loop ends. A matrix is looked at again only where enough
zeros lie scattered in it that a whole row or column may have become zero.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from converters.rules.blocks import constant_target
from converters.rules.dense_head import dead_head_units
from converters.rules.facts import (
    Context,
    Death,
    Flags,
    LayerState,
    ModelFacts,
    Rule,
)
from converters.rules.stream import removable_dims, unwritten_before
from sgate_serve.architecture.family import BLOCKS, KEY, OUTPUT, WRITERS
from sgate_serve.plan import Fold, Indices, Merge, Removal

HIDDEN_RULE, HEAD_RULE = "7 residual dimension", "11 unit on top"


class Fixpoint:
    """The state of one compilation; `run` it, then read it."""

    def __init__(self, facts: ModelFacts, rules: Mapping[str, Rule]) -> None:
        spec = facts.spec
        self.facts, self.rules = facts, rules
        self.layers = [LayerState.of(spec, i, zeros) for i, zeros in enumerate(facts.layers)]
        self.hidden = np.ones(spec.hidden_size, np.bool_)
        self.head_units = np.ones(spec.head_units, np.bool_)
        self.folds: list[Fold] = []
        self.merges: list[Merge] = []
        self.removals: list[Removal] = []
        self.layer_removals: list[list[Removal]] = [[] for _ in self.layers]
        unembedded = facts.unembedded
        self._embedded = self.hidden.copy() if unembedded is None else ~unembedded
        self._scanned: dict[tuple[int, str], tuple[int, int]] = {}

    @property
    def num_weights(self) -> int:
        zeros = (zeros for layer in self.layers for zeros in layer.zeros.values())
        return sum(one.rows.size * one.columns.size for one in zeros)

    def run(self) -> None:
        while self._layers_once() or self._model_once() or self._look_again():
            pass

    def _layers_once(self) -> bool:
        changed = False
        context = unwritten_before(self.facts, self.layers, self._embedded)
        for index, unwritten in enumerate(context):
            while self._layer_once(index, unwritten):
                changed = True
        return changed

    def _layer_once(self, index: int, unwritten: Mapping[str, Flags]) -> bool:
        changed = False
        for name, rule in self.rules.items():
            for death in rule(Context(self.facts, self.layers[index], unwritten)):
                changed |= self._bury(index, name, death)
        return changed

    def _bury(self, index: int, rule: str, death: Death) -> bool:
        """Take a layer's dead out; say whether any of them was still alive."""
        layer = self.layers[index]
        new: Flags = death.dead & layer.alive(death.axis)
        if not new.any():
            return False
        constant = np.zeros_like(new) if death.constant is None else new & death.constant
        if constant.any():
            fold = Fold(death.axis, index, indices_of(constant))
            self.folds.append(fold)
            assert fold.role is not None, fold
            columns = layer.columns_of(death.axis, constant)
            layer = layer.with_folded(fold.role, self._reached(layer, fold.role, columns))
        for merge in death.merges:
            self._add_merge(merge)
            layer = _merged(layer, merge)
        self.layers[index] = layer.without(death.axis, new)
        removal = Removal(death.axis, indices_of(new), rule, death.cause)
        self.layer_removals[index].append(removal)
        return True

    def _reached(self, layer: LayerState, role: str, columns: Flags) -> Flags:
        """Flag the rows of a matrix that are not zero on some columns."""
        zeros = layer.zeros[role]
        # A merged key row is not the one that is stored.
        if self.facts.scan is None or not zeros.scattered or role == KEY:
            return ~zeros.rows
        return ~zeros.rows & ~self.facts.scan(layer.index, role, ~zeros.rows, columns).rows

    def _add_merge(self, merge: Merge) -> None:
        """Record a merge; what its members took over before is merged with them."""
        indices = set(merge.indices)
        earlier = [m for m in self.merges if (m.axis, m.layer) == (merge.axis, merge.layer)]
        for other in earlier:
            if other.indices[0] in indices:
                indices |= set(other.indices)
                self.merges.remove(other)
        # The first takes over, and is not always the lowest: an earlier one may have died since.
        first, *_ = merge.indices
        self.merges.append(replace(merge, indices=(first, *sorted(indices - {first}))))

    def _model_once(self) -> bool:
        changed = [self._move_constants(), self._remove_hidden(), self._remove_head_units()]
        return any(changed)

    def _remove_hidden(self) -> bool:
        dead = self.hidden & removable_dims(self.facts, self.layers, self._embedded)
        # A stream that is zero throughout keeps its width: a model of none is no model.
        if not dead.any() or not (self.hidden & ~dead).any():
            return False
        self.hidden &= ~dead
        self.layers = [layer.without("hidden", dead) for layer in self.layers]
        cause = "nothing writes the dimension"
        self.removals.append(Removal("hidden", indices_of(dead), HIDDEN_RULE, cause))
        return True

    def _remove_head_units(self) -> bool:
        changed = False
        for death in dead_head_units(self.facts):
            new = death.dead & self.head_units
            if not new.any() or (new == self.head_units).all():
                continue
            changed = True
            self.head_units &= ~new
            if death.constant is not None:
                self.folds.append(Fold("head_units", len(self.layers), indices_of(new)))
            removal = Removal("head_units", indices_of(new), HEAD_RULE, death.cause)
            self.removals.append(removal)
        return changed

    def _move_constants(self) -> bool:
        """Let blocks go that write only their bias: the tensor before takes it over (rule 6)."""
        changed = False
        for index in range(len(self.layers)):
            for block in BLOCKS:
                changed |= self._move_constant(index, block)
        return changed

    def _move_constant(self, index: int, block: str) -> bool:
        layer, role = self.layers[index], WRITERS[block]
        if role not in layer.zeros or layer.has(block) or block in layer.moved:
            return False
        written = ~layer.found[role].bias & layer.hidden
        move = constant_target(self.facts, self.layers, index, block)
        if move is None or not written.any():
            return False
        self.folds.append(Fold(block, index, (), move.tensor))
        self.layers[index] = replace(layer, moved=layer.moved | {block})
        if move.writer is not None:
            place, writer = move.writer[0], WRITERS[move.writer[1]]
            self.layers[place] = self.layers[place].with_folded(writer, written)
        elif move.tensor.endswith(".weight"):
            self._embedded = self._embedded | written
        return True

    def _look_again(self) -> bool:
        places = [(index, role) for index, zeros in enumerate(self.facts.layers) for role in zeros]
        return any([self._look_at(index, role) for index, role in places])  # noqa: C419  # all

    def _look_at(self, index: int, role: str) -> bool:
        """Scan a matrix on what is alive, where scattered zeros could have become a whole line."""
        layer = self.layers[index]
        zeros, (rows, columns) = layer.zeros[role], self._counted(layer, role)
        size = (int(rows.sum()), int(columns.sum()))
        is_whole = size == (rows.size, columns.size)
        known = self._scanned.get((index, role)) == size
        # The zeros of lines that are zero already are not among the scattered.
        open_size = [int(flags.sum()) for flags in layer.stored(role)]
        if self.facts.scan is None or known or is_whole or zeros.scattered < max(1, min(open_size)):
            return False
        self._scanned[index, role] = size
        found = self.facts.scan(index, role, rows, columns)
        more = replace(zeros, rows=zeros.rows | found.rows, columns=zeros.columns | found.columns)
        layer = layer.with_zeros(role, more)
        for merge in self._merges_of(layer, role):
            layer = _merged(layer, merge)
        self.layers[index], more = layer, layer.zeros[role]
        more_rows, more_columns = more.rows & ~zeros.rows, more.columns & ~zeros.columns
        return bool((more_rows & rows).any() or (more_columns & columns).any())

    def _merges_of(self, layer: LayerState, role: str) -> list[Merge]:
        axis = {KEY: "key_dims", OUTPUT: "heads"}.get(role)
        return [m for m in self.merges if (m.layer, m.axis) == (layer.index, axis)]

    def _counted(self, layer: LayerState, role: str) -> tuple[Flags, Flags]:
        """Flag the living rows and columns of a matrix, and those that others have taken over."""
        rows, columns = layer.live_rows(role).copy(), layer.live_columns(role).copy()
        for merge in self._merges_of(layer, role):
            if role == KEY:
                rows[list(merge.indices)] |= rows[merge.indices[0]]
            else:
                heads = columns.reshape(layer.heads.size, -1)
                heads[list(merge.indices)] |= heads[merge.indices[0]]
        return rows, columns


def indices_of(flags: Flags) -> Indices:
    """Return where flags are set, in the order of the flattened array."""
    return tuple(_integers(flags.size)[flags.reshape(-1)])


@cache
def _integers(size: int) -> NDArray[np.object_]:
    """Return 0 to size - 1 as Python integers: a 70B model's plan names millions, so share them."""
    return np.arange(size).astype(object)


def _merged(layer: LayerState, merge: Merge) -> LayerState:
    """Return the layer with the first of the merged taking the others' weights over.

    A sum counts as nonzero where any part is.
    """
    width = layer.shape.head_dim
    if merge.axis == "heads":
        zeros = layer.zeros[OUTPUT]
        columns = zeros.columns.reshape(-1, width).copy()
        columns[merge.indices[0]] = columns[list(merge.indices)].all(axis=0)
        return layer.with_zeros(OUTPUT, replace(zeros, columns=columns.reshape(-1)))
    zeros = layer.zeros[KEY]
    rows = zeros.rows.copy()
    rows[merge.indices[0]] = rows[list(merge.indices)].all()
    return layer.with_zeros(KEY, replace(zeros, rows=rows))
