"""What the rules may rely on: which parts of the masked dense model are exactly zero.

Facts are given and never change; `LayerState` is what has not yet been proved dead and only
shrinks. All flags are boolean arrays in the original coordinates, and "zero" always means zero on
the coordinates that are still alive.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.activations import is_zero_at_zero
from sgate_serve.architecture.family import (
    ATTENTION,
    DOWN,
    GATE,
    KEY,
    OUTPUT,
    QUERY,
    READERS,
    UP,
    VALUE,
    Family,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Merge

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Zeros:
    """One role's linear, (out, in): True marks a row, column or bias entry that is exactly zero.

    A linear without bias has zero biases throughout. `scattered` counts the zeros outside zero rows
    and columns: only where there are enough can a row become zero when columns die. `inactive`
    flags rows before an activation that makes exactly 0 of their bias.
    """

    rows: Flags
    columns: Flags
    bias: Flags
    scattered: int = 0
    inactive: Flags | None = None

    def within(self, live_rows: Flags, live_columns: Flags) -> "Zeros":
        """Return the zeros of the matrix restricted to what is alive."""
        rows = self.rows | bool((self.columns | ~live_columns).all())
        columns = self.columns | bool((self.rows | ~live_rows).all())
        return replace(self, rows=rows, columns=columns)

    @property
    def silent_rows(self) -> Flags:
        """Rows that output exactly zero whatever comes in."""
        return self.rows & self.bias

    def inactive_rows(self, activation: str) -> Flags:
        """Rows that are zero behind an activation whatever comes in."""
        zero = self.bias if is_zero_at_zero(activation) else np.zeros_like(self.bias)
        return self.rows & (zero if self.inactive is None else zero | self.inactive)


@dataclass(frozen=True)
class NormZeros:
    """Of a norm over the residual stream: where its effective weight and its bias are zero."""

    weight: Flags
    bias: Flags


@dataclass(frozen=True)
class ModelFacts:
    """Everything that the rules know of a model: its architecture and its zeros.

    `layers` by role, `norms` by module name; `unembedded` flags the residual dimensions that no
    embedding writes. `inner` and `outer` are the linears on top, where the task has units there.
    `scan` looks at a role's matrix again, on the rows and columns that are still alive.
    `has_exact_sums` says that sums of weights can be stored: 16-bit dtypes would round them.
    """

    spec: ModelSpec
    layers: tuple[Mapping[str, Zeros], ...]
    norms: Mapping[str, NormZeros] = field(default_factory=dict)
    unembedded: Flags | None = None
    inner: Zeros | None = None
    outer: Zeros | None = None
    scan: Callable[[int, str, Flags, Flags], Zeros] | None = None
    has_exact_sums: bool = True

    def norm(self, name: str) -> NormZeros:
        """Return a norm's zeros; one that was not looked at has none, but a bias if it can."""
        alive = np.zeros(self.spec.hidden_size, np.bool_)
        without_bias = np.full_like(alive, not self.spec.family.has_norm_bias)
        return self.norms.get(name, NormZeros(alive, without_bias))


@dataclass(frozen=True)
class LayerState:
    """What of one layer may still matter.

    MLP units [I], heads [h], KV heads [kv], value and key dimensions [kv, head_dim], the inputs of
    each reader [hidden]. `folded` flags, per role, biases that a fold may have made nonzero;
    `moved` are blocks without units whose constant another tensor has taken over.
    """

    spec: ModelSpec
    index: int
    zeros: Mapping[str, Zeros]
    mlp_units: Flags
    heads: Flags
    kv_heads: Flags
    value_dims: Flags
    key_dims: Flags
    hidden: Flags
    inputs: Mapping[str, Flags] = field(default_factory=dict)
    folded: Mapping[str, Flags] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: ModelSpec, index: int, zeros: Mapping[str, Zeros]) -> "LayerState":
        shape = spec.layers[index]
        dims = (shape.num_kv_heads, shape.head_dim)
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
        return bool(self.units_of(block).any())

    def without(self, axis: str, dead: Flags) -> "LayerState":
        """Return the state after a death; axis is a field, or `<role>.columns`."""
        role, _, side = axis.partition(".")
        if side:
            return replace(self, inputs={**self.inputs, role: self.inputs[role] & ~dead})
        flags: Flags = getattr(self, axis) & ~dead
        return replace(self, **{axis: flags})  # type: ignore[arg-type]  # one of the axes

    def alive(self, axis: str) -> Flags:
        role, _, side = axis.partition(".")
        flags: Flags = self.inputs[role] if side else getattr(self, axis)
        return flags

    def with_folded(self, role: str, rows: Flags) -> "LayerState":
        """Return the state after constants moved into a role's bias on `rows`."""
        known = self.folded.get(role, np.zeros_like(rows))
        return replace(self, folded={**self.folded, role: known | rows})

    def columns_of(self, axis: str, dims: Flags) -> Flags:
        """Flag the columns that read what `dims` flags on an axis: of heads, dead or alive."""
        if axis != "value_dims":
            return dims
        return np.repeat(dims[:, None, :], self.shape.queries_per_kv, axis=1).reshape(-1)

    def with_zeros(self, role: str, zeros: Zeros) -> "LayerState":
        return replace(self, zeros={**self.zeros, role: zeros})

    def live_rows(self, role: str) -> Flags:
        """Flag the rows of a role's linear whose dimension is alive."""
        if role in (GATE, UP):
            return self.mlp_units
        if role == QUERY:
            return self._per_head(self.key_dims)
        if role in (KEY, VALUE):
            dims = self.key_dims if role == KEY else self.value_dims
            return (dims & self.kv_heads[:, None]).reshape(-1)
        return self.hidden

    def live_columns(self, role: str) -> Flags:
        if role == DOWN:
            return self.mlp_units
        return self._per_head(self.value_dims) if role == OUTPUT else self.inputs[role]

    def _per_head(self, dims: Flags) -> Flags:
        """Spread flags of KV dimensions [kv, d] over the query heads of each group, [h * d]."""
        spread = np.repeat(dims[:, None, :], self.shape.queries_per_kv, axis=1)
        return (spread & self.heads.reshape(*spread.shape[:2], 1)).reshape(-1)

    @cached_property
    def found(self) -> Mapping[str, Zeros]:
        """The zeros of every role on what is alive, biases as folds have left them."""
        found = {}
        for role, zeros in self.zeros.items():
            within = zeros.within(self.live_rows(role), self.live_columns(role))
            if role in self.folded:
                inactive = None if within.inactive is None else within.inactive & ~self.folded[role]
                bias = within.bias & ~self.folded[role]
                within = replace(within, bias=bias, inactive=inactive)
            found[role] = within
        return found

    def per_group(self, flags: Flags) -> Flags:
        """Arrange flags of query dimensions as [kv_heads, queries_per_kv, head_dim]."""
        shape = self.shape
        return flags.reshape(shape.num_kv_heads, shape.queries_per_kv, shape.head_dim)

    def stored(self, role: str) -> tuple[Flags, Flags]:
        """Flag the rows and columns of a role that are alive and not zero."""
        zeros = self.found[role]
        return self.live_rows(role) & ~zeros.rows, self.live_columns(role) & ~zeros.columns


@dataclass(frozen=True)
class Death:
    """A rule's finding: `dead` flags over `axis`, and the root cause in words.

    A `constant` death leaves something behind that must move into the bias behind it; with `merge`
    the first of its indices takes the others over.
    """

    axis: str
    dead: Flags
    cause: str
    constant: Flags | None = None
    merges: tuple[Merge, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a rule for one layer sees: the layer, the facts, and dimensions not written so far."""

    facts: ModelFacts
    layer: LayerState
    unwritten: Mapping[str, Flags]


Rule = Callable[[Context], Iterator[Death]]
