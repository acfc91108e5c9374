"""The widths of one layer, and of a linear that stores only some of its rows or columns."""

from dataclasses import dataclass

from sgate_serve.architecture.family import (
    ATTENTION,
    BLOCKS,
    DOWN,
    GATE,
    KEY,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
)


@dataclass(frozen=True)
class LayerShape:
    """Widths of one layer. No heads means no attention block, no units means no MLP block."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_units: int

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    def has(self, block: str) -> bool:
        """Say whether the layer has its attention or its MLP block."""
        return bool(self.num_heads if block == ATTENTION else self.mlp_units)

    @property
    def skipped_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in BLOCKS if not self.has(block))

    def linear_shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Return the (out, in) shape of every role that this layer can have."""
        shapes: dict[str, tuple[int, int]] = {}
        if self.num_heads:
            query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            shapes |= {QUERY: (query, hidden_size), KEY: (kv, hidden_size)}
            shapes |= {VALUE: (kv, hidden_size), OUTPUT: (hidden_size, query)}
        if self.mlp_units:
            shapes |= {GATE: (self.mlp_units, hidden_size), UP: (self.mlp_units, hidden_size)}
            shapes |= {DOWN: (hidden_size, self.mlp_units)}
        return shapes


@dataclass(frozen=True)
class Lowered:
    """How many rows and columns a module with index vectors stores; None means all of them."""

    rows: int | None = None
    columns: int | None = None
