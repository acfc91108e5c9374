"""The facts that the rules may rely on: which parts of the masked dense model are exactly zero.

Types only, without reading anything: `converters.find_facts` fills them in from a checkpoint, and
training from gates alone. Facts never change; what the rules have not yet removed is
`converters.rules.layer_state`. All flags are boolean arrays in the original coordinates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.activations import is_zero_at_zero
from sgate_serve.architecture.spec import ModelSpec

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Zeros:
    """The rows, columns and bias entries of one role's (out, in) linear that are exactly zero.

    A linear without a bias counts as one whose bias is zero. `scattered` counts the zeros outside
    zero rows and columns: a row can become zero after columns are removed only if there are enough
    of them. `inactive` flags biases that the following activation maps to exactly 0.
    """

    rows: Flags
    columns: Flags
    bias: Flags
    scattered: int = 0
    inactive: Flags | None = None

    def within(self, live_rows: Flags, live_columns: Flags) -> "Zeros":
        """Return the zeros of the matrix restricted to the rows and columns that are alive."""
        rows = self.rows | bool((self.columns | ~live_columns).all())
        columns = self.columns | bool((self.rows | ~live_rows).all())
        return replace(self, rows=rows, columns=columns)

    @property
    def silent_rows(self) -> Flags:
        """Rows whose output is zero for every input."""
        return self.rows & self.bias

    def inactive_rows(self, activation: str) -> Flags:
        """Flag the rows whose output is zero for every input once the activation is applied."""
        zero = self.bias if is_zero_at_zero(activation) else np.zeros_like(self.bias)
        return self.rows & (zero if self.inactive is None else zero | self.inactive)


@dataclass(frozen=True)
class NormZeros:
    """The entries of a residual norm's effective weight and bias that are exactly zero."""

    weight: Flags
    bias: Flags


@dataclass(frozen=True)
class ModelFacts:
    """Everything that the rules know about a model: its architecture and its zeros.

    Each of `layers` maps roles to zeros; `norms` is keyed by module name. `unembedded` flags the
    residual dimensions that are zero in every embedding table; None if the tables were not read.
    `inner` and `outer` are the linears before and after units on top. `scan` reads a role's matrix
    again and returns its zeros on the given rows and columns. `has_exact_sums` says whether the
    stored dtype can hold sums of weights: a 16-bit dtype would round them. `closed_experts` flags,
    by router, the experts that it must never choose.
    """

    spec: ModelSpec
    layers: tuple[Mapping[str, Zeros], ...]
    norms: Mapping[str, NormZeros] = field(default_factory=dict)
    unembedded: Flags | None = None
    inner: Zeros | None = None
    outer: Zeros | None = None
    scan: Callable[[int, str, Flags, Flags], Zeros] | None = None
    has_exact_sums: bool = True
    closed_experts: Mapping[str, Flags] = field(default_factory=dict)

    def norm(self, name: str) -> NormZeros:
        """Return a norm's zeros; a norm that was not read counts as having none.

        Where norms have no bias, every bias entry counts as zero.
        """
        alive = np.zeros(self.spec.hidden_size, np.bool_)
        without_bias = np.full_like(alive, not self.spec.has_norm_bias)
        return self.norms.get(name, NormZeros(alive, without_bias))
