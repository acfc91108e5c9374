"""The masked dense model: base + deltas, gates folded in fp32 and rounded once.

This is the function that conversion must keep. It is read tensor by tensor, whole or sliced, and
never exists in memory at once. Folding (RULES, "Folding"): W' = diag(rows) · W · diag(columns),
b' = rows · b.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.float_bits import is_finite
from converters.rules import Zeros, zeros_of_masks, zeros_of_weight
from sgate_serve.checkpoint import DTYPES, Array, Checkpoint, TensorInfo
from sgate_serve.errors import CheckpointError
from sgate_serve.gates import Gates
from sgate_serve.plan import Gate, Masks
from sgate_serve.spec import ModelSpec

Indices = NDArray[np.int64]

# Half a MiB of bf16, twice that when folded: of 2**13 to 2**24 the fastest on an EPYC.
BLOCK_VALUES = 2**18


@dataclass(frozen=True)
class MaskedCheckpoint:
    """A base checkpoint seen through a gates folder; without one, the base itself.

    `gates` must have been checked against `base`. `precision` is the dtype name that weights are
    rounded to, or None for the stored one.
    """

    base: Checkpoint
    gates: Gates | None = None
    precision: str | None = None

    @cached_property
    def spec(self) -> ModelSpec:
        """The base's architecture, with the biases that training added."""
        return self.base.spec if self.gates is None else self.gates.spec(self.base.spec)

    @cached_property
    def masks(self) -> Masks:
        return {} if self.gates is None else self.gates.masks(self.base.spec)

    @cached_property
    def deltas(self) -> Mapping[str, TensorInfo]:
        return {} if self.gates is None else self.gates.deltas

    def dtype(self, name: str) -> str:
        """Return the dtype name that a tensor of the masked model is stored as."""
        if self.precision is not None:
            return self.precision
        info = self.base.tensors.get(name)
        if info is None:
            # An added bias takes the dtype of its own linear's weight.
            info = self.base.tensors[name.removesuffix("bias") + "weight"]
        return info.dtype

    def read(self, name: str, rows: Indices | None = None, columns: Indices | None = None) -> Array:
        """Return one masked tensor, or those of its rows and columns, in its stored dtype.

        Raises CheckpointError for NaN or infinite values: no proof holds for them.
        """
        info = self.deltas.get(name) or self.base.tensors[name]
        value = info.read()
        if not is_finite(value):
            raise CheckpointError(
                f"{info.file}: tensor {name} holds NaN or infinite values; repair the checkpoint"
            )
        gate = self.masks.get(name.rpartition(".")[0], Gate())
        by_row = _Side.of(gate.rows, rows)
        by_column = _Side.of(gate.columns, columns) if value.ndim == 2 else _Side()
        return _masked_part(value, by_row, by_column, DTYPES[self.dtype(name)])

    def zeros(self) -> Sequence[Mapping[str, Zeros]]:
        """Return the zeros of every layer's linears, by role.

        With gates: from the gates and the biases, no weight is read. Without: by scanning the
        weights, one at a time.
        """
        if self.gates is not None:
            return zeros_of_masks(self.spec, self.masks, dict(self._biases()))
        return [
            {role: self._scan(index, role) for role in layer.linear_shapes(self.spec.hidden_size)}
            for index, layer in enumerate(self.spec.layers)
        ]

    def _scan(self, layer: int, role: str) -> Zeros:
        module = self.spec.family.linear(layer, role)
        has_bias = self.spec.has_bias(layer, role)
        bias = self.read(f"{module}.bias") if has_bias else None
        return zeros_of_weight(self.read(f"{module}.weight"), bias)

    def _biases(self) -> Iterator[tuple[str, Array]]:
        for name in self.spec.tensor_shapes():
            if name.endswith(".bias"):
                yield name.removesuffix(".bias"), self.read(name)


@dataclass(frozen=True)
class _Side:
    """What happens to one axis of a tensor: indices that are kept, and their gates; None is all."""

    kept: Indices | None = None
    gate: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, gate: NDArray[np.float32] | None, kept: Indices | None) -> "_Side":
        """Bind the gate to the kept indices; one that is 1 throughout becomes None."""
        if gate is not None and kept is not None:
            gate = gate[kept]
        return cls(kept, None if gate is None or (gate == 1).all() else gate)

    @property
    def is_whole(self) -> bool:
        return self.kept is None and self.gate is None

    def block(self, span: slice) -> "_Side":
        kept = None if self.kept is None else self.kept[span]
        return _Side(kept, None if self.gate is None else self.gate[span])


def _masked_part(value: Array, rows: _Side, columns: _Side, dtype: np.dtype[Any]) -> Array:
    """Slice, fold and round a tensor, a few rows at a time: temporaries stay in the CPU's cache."""
    if rows.is_whole and columns.is_whole and value.dtype == dtype:
        return value
    height = len(value) if rows.kept is None else len(rows.kept)
    width = value.shape[1:] if columns.kept is None else columns.kept.shape
    part = np.empty((height, *width), dtype)
    step = max(1, BLOCK_VALUES // max(1, math.prod(value.shape[1:])))
    for start in range(0, height, step):
        span = slice(start, start + step)
        block = rows.block(span)
        lines = value[span] if block.kept is None else value.take(block.kept, 0)
        lines = lines if columns.kept is None else lines.take(columns.kept, 1)
        part[span] = _fold(lines, block.gate, columns.gate)
    return part


def _fold(
    value: Array, rows: NDArray[np.float32] | None, columns: NDArray[np.float32] | None
) -> Array:
    if rows is None and columns is None:
        return value
    folded = value.astype(np.float32)
    if rows is not None:
        folded *= rows.reshape(-1, *[1] * (value.ndim - 1))
    if columns is not None:
        folded *= columns
    return folded
