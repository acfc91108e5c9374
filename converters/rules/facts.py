"""What the rules may rely on: which rows, columns and biases of each linear are zero.

`LayerFacts` are given and never change; `Liveness` is what has not yet been proved dead and only
shrinks. Both are boolean arrays in the original coordinates of one layer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgate_serve.families import ZERO_AT_ZERO
from sgate_serve.spec import LayerShape

Flags = NDArray[np.bool_]
LiveAxis = Literal["mlp_units", "value_dims", "heads", "kv_heads"]


@dataclass(frozen=True)
class Zeros:
    """One linear, (out, in): True marks a row, column or bias entry that is exactly zero.

    A linear without bias has zero biases throughout.
    """

    rows: Flags
    columns: Flags
    bias: Flags

    @property
    def silent_rows(self) -> Flags:
        """Rows that output exactly zero whatever comes in."""
        return self.rows & self.bias

    @property
    def writes_nothing(self) -> bool:
        return bool((self.rows.all() or self.columns.all()) and self.bias.all())


@dataclass(frozen=True)
class LayerFacts:
    """Shapes and zeros of one layer of the masked dense model, by role of the linear."""

    shape: LayerShape
    zeros: Mapping[str, Zeros]
    activation: str

    @property
    def is_zero_at_zero(self) -> bool:
        return self.activation in ZERO_AT_ZERO

    def query_columns(self, columns: Flags) -> Flags:
        """Arrange flags of the output columns as [kv_heads, queries_per_kv, head_dim]."""
        shape = self.shape
        return columns.reshape(shape.num_kv_heads, shape.queries_per_kv, shape.head_dim)


@dataclass(frozen=True)
class Liveness:
    """What may still matter: MLP units [I], value dims [kv, head_dim], heads [h], KV heads [kv]."""

    mlp_units: Flags
    value_dims: Flags
    heads: Flags
    kv_heads: Flags

    @classmethod
    def of(cls, shape: LayerShape) -> "Liveness":
        return cls(
            mlp_units=np.ones(shape.mlp_units, np.bool_),
            value_dims=np.ones((shape.num_kv_heads, shape.head_dim), np.bool_),
            heads=np.ones(shape.num_heads, np.bool_),
            kv_heads=np.ones(shape.num_kv_heads, np.bool_),
        )

    def without(self, axis: LiveAxis, dead: Flags) -> "Liveness":
        flags: Flags = getattr(self, axis) & ~dead
        return replace(self, **{axis: flags})


@dataclass(frozen=True)
class Death:
    """A rule's finding: `dead` flags over `axis`, and the root cause in words."""

    axis: LiveAxis
    dead: Flags
    cause: str


Rule = Callable[[LayerFacts, Liveness], Iterator[Death]]
