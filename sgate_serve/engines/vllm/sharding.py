"""The division of one layer among shards: its widths, and the source of each row and column.

Heads and units that do not divide evenly are padded with zeros, which is exact: neither a zero KV
group with its query heads nor a zero unit writes anything. Index vectors do not divide, so with
more than one shard the zero rows and columns of lowered linears are restored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import ATTENTION, DOWN, GATE, OUTPUT, READERS, UP
from sgate_serve.architecture.shapes import Heads, LayerShape

# Positions in the stored layer, in the order of the padded one; PADDING means a zero.
Sources = NDArray[np.int64]
PADDING = -1


@dataclass(frozen=True)
class ShardedLayer:
    """A layer's shape as stored, and as `num_shards` equal shards need it."""

    stored: LayerShape
    num_shards: int = 1

    @cached_property
    def padded(self) -> LayerShape:
        """The shape over all shards, each with the same number of heads, KV heads and units.

        With fewer KV heads than shards, each KV head is replicated if the counts allow it.
        """
        shape, shards = self.stored, self.num_shards
        units = round_up(shape.mlp_units, shards)
        if not shape.num_heads:
            return replace(shape, mlp_units=units)
        if self._is_replicated:
            queries = round_up(shape.queries_per_kv, shards // shape.num_kv_heads)
            heads = shape.num_kv_heads * queries
            return replace(shape, num_heads=heads, mlp_units=units)
        kv_heads = round_up(shape.num_kv_heads, shards)
        return replace(
            shape,
            num_heads=kv_heads * shape.queries_per_kv,
            num_kv_heads=kv_heads,
            mlp_units=units,
        )

    @property
    def _is_replicated(self) -> bool:
        return self.stored.num_kv_heads < self.num_shards and (
            self.num_shards % self.stored.num_kv_heads == 0
        )

    @property
    def num_heads(self) -> int:
        """The number of query heads on one shard."""
        return self.padded.num_heads // self.num_shards

    @property
    def num_kv_heads(self) -> int:
        """The number of KV heads on one shard."""
        return max(1, self.padded.num_kv_heads // self.num_shards)

    @property
    def replicas(self) -> int:
        """How many shards have the same KV head."""
        return max(1, self.num_shards // self.padded.num_kv_heads)

    @cached_property
    def rows(self) -> Mapping[str, Sources]:
        """The sources of each role's rows; the down and output projections keep all of theirs."""
        units = _padded(np.arange(self.stored.mlp_units), self.padded.mlp_units)
        own = {role: self._dimensions(role) for role in READERS[ATTENTION]}
        return {**own, GATE: units, UP: units}

    @cached_property
    def columns(self) -> Mapping[str, Sources]:
        """The sources of the columns of the down and output projections."""
        units = self.rows[UP]
        return {OUTPUT: self._dimensions(OUTPUT), DOWN: units}

    def size(self, role: str) -> int:
        """Return how many dimensions of an attention role one shard has."""
        heads, width = self.stored.dims_of(role)
        return (self.num_heads if heads == "heads" else self.num_kv_heads) * width

    def _dimensions(self, role: str) -> Sources:
        """Return the sources of the dimensions of an attention role."""
        heads, width = self.stored.dims_of(role)
        return _dimensions(self._heads[heads], width)

    @cached_property
    def _heads(self) -> Mapping[Heads, Sources]:
        """The sources of both kinds of heads."""
        stored, padded = self.stored, self.padded
        if not stored.num_heads:
            none = np.zeros(0, np.int64)
            return {"heads": none, "kv_heads": none}
        groups = np.arange(stored.num_heads).reshape(stored.num_kv_heads, -1)
        wider = np.full((padded.num_kv_heads, padded.queries_per_kv), PADDING)
        wider[: groups.shape[0], : groups.shape[1]] = groups
        kv_heads = _padded(np.arange(stored.num_kv_heads), padded.num_kv_heads)
        return {"heads": wider.ravel(), "kv_heads": kv_heads}


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _padded(sources: Sources, size: int) -> Sources:
    return np.pad(sources, (0, size - len(sources)), constant_values=PADDING)


def _dimensions(heads: Sources, width: int) -> Sources:
    """Return the dimensions of heads, `width` for each head."""
    dims = heads[:, None] * width + np.arange(width)
    return np.where(heads[:, None] == PADDING, PADDING, dims).ravel()
