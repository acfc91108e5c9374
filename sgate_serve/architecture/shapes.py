"""The widths of one layer, and of a linear that stores only some of its rows or columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sgate_serve.architecture.family import (
    ATTENTION,
    BLOCKS,
    DECAY,
    DOWN,
    GATE,
    KEY,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    RENEWAL,
    UP,
    VALUE,
)
from sgate_serve.errors import CheckpointError

# The two kinds of heads, as a plan counts them.
Heads = Literal["heads", "kv_heads"]


@dataclass(frozen=True)
class LayerShape:
    """Widths of one layer. No heads means no attention block, no units means no MLP block.

    A mixture has the units of its experts one after another, those of the shared expert last;
    `experts` are the widths of the others, of which each token uses `top_k`. Without `has_values`
    the keys, before their norm and rotation, are the values too; without `has_keys`, both are those
    of an earlier layer. A stock config states the width of the MLP divided by `mlp_factor`.
    A layer with a `key_dim` is recurrent. Its KV heads are queries and keys of that width, and its
    heads are values of `head_dim`; each KV head serves as many of them.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_units: int
    experts: tuple[int, ...] = ()
    top_k: int = 0
    has_values: bool = True
    key_dim: int = 0
    has_keys: bool = True
    mlp_factor: int = 1

    def check(self, where: str, *, rotates: bool) -> None:
        """Raise CheckpointError, naming `where`, if head counts or widths contradict each other."""
        heads, kv_heads = ("value", "key") if self.is_recurrent else ("query", "KV")
        if bool(self.num_heads) != bool(self.num_kv_heads):
            raise CheckpointError(f"{where} has {heads} or {kv_heads} heads, not both")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{where} has {self.num_heads} {heads} heads, not a multiple of its "
                f"{self.num_kv_heads} {kv_heads} heads; correct the config"
            )
        if self.head_dim <= 0 or (rotates and self.head_dim % 2):
            raise CheckpointError(f"{where}: head_dim {self.head_dim} must be even and positive")

    @property
    def value_role(self) -> str:
        """The role whose rows are those of the values."""
        return VALUE if self.has_values else KEY

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    def has(self, block: str) -> bool:
        """Say whether the layer has its attention or its MLP block."""
        return bool(self.num_heads if block == ATTENTION else self.mlp_units)

    @property
    def shared_units(self) -> int:
        """The width of the expert that every token uses; 0 without one."""
        return self.mlp_units - sum(self.experts) if self.experts else 0

    @property
    def expert_spans(self) -> list[slice]:
        """Return which of the layer's units each expert has, the shared one last."""
        widths = [*self.experts, *([self.shared_units] if self.shared_units else [])]
        ends = np.cumsum(widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]

    @property
    def mlp_widths(self) -> list[int]:
        """The width of the layer's MLP, or of each of its experts, the shared one last."""
        return [span.stop - span.start for span in self.expert_spans] or [self.mlp_units]

    def narrowed(
        self, num_heads: int, num_kv_heads: int, units: Sequence[int], experts: Sequence[int] = ()
    ) -> "LayerShape":
        """Return the shape of the survivors: so many heads, and these units and experts."""
        found = replace(self, num_heads=num_heads, num_kv_heads=num_kv_heads, mlp_units=len(units))
        if not self.experts:
            return found
        if not units:
            return replace(found, experts=(), top_k=0)
        spans = self.expert_spans
        starts = np.searchsorted(np.asarray(units), [span.start for span in spans])
        stops = np.searchsorted(np.asarray(units), [span.stop for span in spans])
        widths = (stops - starts).tolist()
        kept = tuple(widths[expert] for expert in experts)
        return replace(found, experts=kept, top_k=min(self.top_k, len(kept)))

    @property
    def skipped_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in BLOCKS if not self.has(block))

    @property
    def is_recurrent(self) -> bool:
        return self.key_dim > 0

    def dims_of(self, role: str) -> tuple[Heads, int]:
        """Return which heads the dimensions of an attention role belong to, and how many each has.

        These are its rows, and of `OUTPUT` the columns.
        """
        if self.is_recurrent:
            if role in (QUERY, KEY):
                return "kv_heads", self.key_dim
            return "heads", 1 if role in (RENEWAL, DECAY) else self.head_dim
        return "kv_heads" if role in (KEY, VALUE) else "heads", self.head_dim

    def linear_shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Return the (out, in) shape of every role that this layer can have."""
        shapes: dict[str, tuple[int, int]] = {}
        if self.num_heads:
            counts = {"heads": self.num_heads, "kv_heads": self.num_kv_heads}
            for role in (QUERY, KEY, VALUE, OUTPUT_GATE, RENEWAL, DECAY, OUTPUT):
                if role in (KEY, VALUE) and not self.has_keys:
                    continue
                if role == VALUE and not self.has_values:
                    continue
                heads, width = self.dims_of(role)
                size = counts[heads] * width
                shapes[role] = (hidden_size, size) if role == OUTPUT else (size, hidden_size)
        if self.mlp_units:
            shapes |= {GATE: (self.mlp_units, hidden_size), UP: (self.mlp_units, hidden_size)}
            shapes |= {DOWN: (hidden_size, self.mlp_units)}
        return shapes


@dataclass(frozen=True)
class Lowered:
    """How many rows and columns a module with index vectors stores; None means all of them."""

    rows: int | None = None
    columns: int | None = None
