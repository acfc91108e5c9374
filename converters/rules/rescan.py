"""Rescans: read a matrix again on what is alive, to find rows and columns that became zero.

Only a matrix with enough scattered zeros to fill a row or column is read, and only after some of
its rows or columns were removed.
"""

from collections.abc import Sequence
from dataclasses import replace

from converters.rules.facts import ModelFacts
from converters.rules.layer_state import LayerState
from converters.rules.merges import counted_lines, with_merge
from sgate_serve.plan import Merge


class Rescanner:
    """Rescans matrices, and remembers at which living size each was read last."""

    def __init__(self, facts: ModelFacts) -> None:
        self._scan = facts.scan
        self._read_sizes: dict[tuple[int, str], tuple[int, int]] = {}

    def rescan(
        self, layer: LayerState, role: str, merges: Sequence[Merge]
    ) -> tuple[LayerState, bool]:
        """Return the layer with the zeros found, and whether any are on a living row or column.

        `merges` are those of the role.
        """
        rows, columns = counted_lines(layer, role, merges)
        size = (int(rows.sum()), int(columns.sum()))
        is_whole, zeros = size == (rows.size, columns.size), layer.zeros[role]
        # Zeros in rows and columns that are zero themselves are not among the scattered ones.
        open_size = [int(flags.sum()) for flags in layer.stored(role)]
        is_read = self._read_sizes.get((layer.index, role)) == size
        if self._scan is None or is_read or is_whole or zeros.scattered < max(1, min(open_size)):
            return layer, False
        self._read_sizes[layer.index, role] = size
        found = self._scan(layer.index, role, rows, columns)
        more = replace(zeros, rows=zeros.rows | found.rows, columns=zeros.columns | found.columns)
        layer = layer.with_zeros(role, more)
        for merge in merges:
            layer = with_merge(layer, merge)
        more = layer.zeros[role]
        more_rows, more_columns = more.rows & ~zeros.rows, more.columns & ~zeros.columns
        return layer, bool((more_rows & rows).any() or (more_columns & columns).any())
