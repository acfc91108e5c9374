"""The part of one layer that no rule has removed yet; it only ever shrinks.

A `LayerState` is immutable: each change returns a new one. "Zero" always means zero on the
coordinates that are still alive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from converters.rules.facts import Flags, Zeros
from sgate_serve.architecture.family import (
    ATTENTION,
    DOWN,
    GATE,
    KEY,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    READERS,
    UP,
    VALUE,
    Family,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan.plan import Axis


@dataclass(frozen=True)
class Columns:
    """The axis of the columns of the linear `role`, which read the residual stream."""

    role: str

    def __str__(self) -> str:
        return f"{self.role}.columns"


LayerAxis = Axis | Literal["hidden"] | Columns
ModelAxis = Literal["hidden", "head_units"]


@dataclass(frozen=True)
class LayerState:
    """Flags for what is alive in a layer, by axis, and the zeros of its linears.

    Shapes: MLP units [I] (of all experts), experts [E], heads [h], KV heads [kv], value and key
    dimensions [kv, head_dim] (none in recurrent layers), `inputs` of each reader [hidden]. `folded`
    flags, by role, the bias entries that a fold may have made nonzero; `moved` are the blocks
    without units whose constant another tensor now holds.
    """

    spec: ModelSpec
    index: int
    zeros: Mapping[str, Zeros]
    mlp_units: Flags
    heads: Flags
    kv_heads: Flags
    value_dims: Flags
    key_dims: Flags
    experts: Flags
    hidden: Flags
    inputs: Mapping[str, Flags] = field(default_factory=dict)
    folded: Mapping[str, Flags] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: ModelSpec, index: int, zeros: Mapping[str, Zeros]) -> "LayerState":
        """Return the state before any rule: everything is alive."""
        shape = spec.layers[index]
        dims = (shape.num_kv_heads, 0 if shape.is_recurrent else shape.head_dim)
        hidden = np.ones(spec.hidden_size, np.bool_)
        return cls(
            spec=spec,
            index=index,
            zeros=zeros,
            mlp_units=np.ones(shape.mlp_units, np.bool_),
            heads=np.ones(shape.num_heads, np.bool_),
            kv_heads=np.ones(shape.num_kv_heads, np.bool_),
            value_dims=np.ones(dims, np.bool_),
            key_dims=np.ones(dims, np.bool_),
            experts=np.ones(len(shape.experts), np.bool_),
            hidden=hidden,
            inputs={role: hidden for block in READERS for role in READERS[block] if role in zeros},
        )

    @property
    def shape(self) -> LayerShape:
        return self.spec.layers[self.index]

    @property
    def family(self) -> Family:
        return self.spec.family

    def units_of(self, block: str) -> Flags:
        return self.heads if block == ATTENTION else self.mlp_units

    def has(self, block: str) -> bool:
        """Say whether any unit or head of a block is alive."""
        return bool(self.units_of(block).any())

    @property
    def attends(self) -> bool:
        """Say whether any head that attends is alive."""
        return self.has(ATTENTION) and not self.shape.is_recurrent

    def alive(self, axis: LayerAxis) -> Flags:
        flags: Flags = self.inputs[axis.role] if isinstance(axis, Columns) else getattr(self, axis)
        return flags

    def without(self, axis: LayerAxis, dead: Flags) -> "LayerState":
        """Return the state after removing the flagged part of an axis."""
        alive = self.alive(axis) & ~dead
        if isinstance(axis, Columns):
            return replace(self, inputs={**self.inputs, axis.role: alive})
        return replace(self, **{axis: alive})  # type: ignore[arg-type]  # one of the axes

    def with_folded(self, role: str, rows: Flags) -> "LayerState":
        """Return the state after constants have moved into the bias of `role`, on `rows`."""
        known = self.folded.get(role, np.zeros_like(rows))
        return replace(self, folded={**self.folded, role: known | rows})

    def with_zeros(self, role: str, zeros: Zeros) -> "LayerState":
        return replace(self, zeros={**self.zeros, role: zeros})

    def columns_of(self, axis: LayerAxis, dims: Flags) -> Flags:
        """Flag the columns that read the flagged `dims`, of removed heads as well."""
        if axis != "value_dims":
            return dims
        return np.repeat(dims[:, None, :], self.shape.queries_per_kv, axis=1).reshape(-1)

    def live_rows(self, role: str) -> Flags:
        """Flag the rows of a role's linear whose dimension is alive."""
        if role in (GATE, UP):
            return self.mlp_units
        if role in READERS[ATTENTION] and self.shape.is_recurrent:
            return self._whole_heads(role)
        if role in (QUERY, OUTPUT_GATE):
            return self._per_head(self.key_dims if role == QUERY else self.value_dims)
        if role in (KEY, VALUE):
            dims = self.key_dims if role == KEY else self.value_dims
            return (dims & self.kv_heads[:, None]).reshape(-1)
        return self.hidden

    def live_columns(self, role: str) -> Flags:
        """Flag the columns of a role's linear whose dimension is alive."""
        if role == DOWN:
            return self.mlp_units
        if role == OUTPUT:
            is_recurrent = self.shape.is_recurrent
            return self._whole_heads(role) if is_recurrent else self._per_head(self.value_dims)
        return self.inputs[role]

    def _whole_heads(self, role: str) -> Flags:
        """Flag the dimensions of a role whose head is alive."""
        heads, width = self.shape.dims_of(role)
        return np.repeat(self.alive(heads), width)

    def _per_head(self, dims: Flags) -> Flags:
        """Spread flags of KV dimensions [kv, d] over the query heads of each group, [h * d]."""
        spread = np.repeat(dims[:, None, :], self.shape.queries_per_kv, axis=1)
        return (spread & self.heads.reshape(*spread.shape[:2], 1)).reshape(-1)

    @cached_property
    def live_zeros(self) -> Mapping[str, Zeros]:
        """The zeros of each role on what is alive, with biases as folds have left them."""
        live = {}
        for role, zeros in self.zeros.items():
            within = zeros.within(self.live_rows(role), self.live_columns(role))
            if role in self.folded:
                inactive = None if within.inactive is None else within.inactive & ~self.folded[role]
                bias = within.bias & ~self.folded[role]
                within = replace(within, bias=bias, inactive=inactive)
            live[role] = within
        return live

    def per_group(self, flags: Flags) -> Flags:
        """Arrange flags of query dimensions as [kv_heads, queries_per_kv, head_dim]."""
        shape = self.shape
        return flags.reshape(shape.num_kv_heads, shape.queries_per_kv, shape.head_dim)

    def stored(self, role: str) -> tuple[Flags, Flags]:
        """Flag the rows and columns of a role that are alive and not zero."""
        zeros = self.live_zeros[role]
        return self.live_rows(role) & ~zeros.rows, self.live_columns(role) & ~zeros.columns
