"""Merges (rule 10): several heads or key dimensions become one, the first of their indices.

The first receives the sum of their weights, which counts as nonzero where any part is.
"""

from collections.abc import Iterable
from dataclasses import replace

from converters.rules.facts import Flags
from converters.rules.layer_state import LayerState
from sgate_serve.architecture.family import KEY, OUTPUT
from sgate_serve.plan import Merge

# The axis on which the matrix of a role is merged.
AXES = {KEY: "key_dims", OUTPUT: "heads"}


def joined(merges: Iterable[Merge], new: Merge) -> list[Merge]:
    """Return the merges with a new one; earlier merges into its members become part of it."""
    indices, others = set(new.indices), []
    for merge in merges:
        is_same_axis = (merge.axis, merge.layer) == (new.axis, new.layer)
        if is_same_axis and merge.indices[0] in indices:
            indices |= set(merge.indices)
        else:
            others.append(merge)
    # The first index receives the others. It need not be the lowest, which may be dead by now.
    first = new.indices[0]
    return [*others, replace(new, indices=(first, *sorted(indices - {first})))]


def merges_of(merges: Iterable[Merge], layer: LayerState, role: str) -> list[Merge]:
    """Return the merges that change the matrix of a role."""
    axis = AXES.get(role)
    return [merge for merge in merges if (merge.layer, merge.axis) == (layer.index, axis)]


def with_merge(layer: LayerState, merge: Merge) -> LayerState:
    """Return the layer with the weights of the merged parts in the first of them."""
    first, members = merge.indices[0], list(merge.indices)
    if merge.axis == "heads":
        zeros = layer.zeros[OUTPUT]
        columns = zeros.columns.reshape(-1, layer.shape.head_dim).copy()
        columns[first] = columns[members].all(axis=0)
        return layer.with_zeros(OUTPUT, replace(zeros, columns=columns.reshape(-1)))
    zeros = layer.zeros[KEY]
    rows = zeros.rows.copy()
    rows[first] = rows[members].all()
    return layer.with_zeros(KEY, replace(zeros, rows=rows))


def counted_lines(layer: LayerState, role: str, merges: Iterable[Merge]) -> tuple[Flags, Flags]:
    """Flag the stored rows and columns of a matrix that still count: alive, or merged into those.

    `merges` are those of the role.
    """
    rows, columns = layer.live_rows(role).copy(), layer.live_columns(role).copy()
    for merge in merges:
        first, members = merge.indices[0], list(merge.indices)
        if role == KEY:
            rows[members] |= rows[first]
        else:
            heads = columns.reshape(layer.heads.size, -1)
            heads[members] |= heads[first]
    return rows, columns
