"""The masked dense model: base + deltas, gates folded in fp32 and rounded once.

This is the function that conversion must keep. It is read tensor by tensor, whole or sliced, and
never exists in memory at once. Folding (RULES, "Folding"): W' = diag(rows) · W · diag(columns),
b' = rows · b.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converters.rules import Zeros, zeros_of_masks, zeros_of_weight
from sgate_serve.checkpoint import DTYPES, Array, Checkpoint, TensorInfo
from sgate_serve.errors import CheckpointError
from sgate_serve.gates import Gates
from sgate_serve.plan import Gate, Masks
from sgate_serve.spec import ModelSpec

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MaskedCheckpoint:
    """A base checkpoint seen through a gates folder; without one, the base itself.

    `precision` is the dtype name that weights are rounded to, or None for the stored one.
    """

    base: Checkpoint
    gates: Gates | None = None
    precision: str | None = None

    @classmethod
    def open(
        cls, base: Checkpoint, gates: Gates | None, precision: str | None = None
    ) -> "MaskedCheckpoint":
        """Bind gates to their base; raise GatesError if they belong to another."""
        if gates is not None:
            gates.check(base)
        return cls(base, gates, precision)

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
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{info.file}: tensor {name} holds NaN or infinite values; repair the checkpoint"
            )
        gate = self.masks.get(name.rpartition(".")[0], Gate())
        value, row_gate = _take(value, gate.rows, rows, axis=0)
        if value.ndim == 2:
            value, column_gate = _take(value, gate.columns, columns, axis=1)
        else:
            column_gate = None
        return _fold(value, row_gate, column_gate).astype(DTYPES[self.dtype(name)], copy=False)

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


def _take(
    value: Array, gate: NDArray[np.float32] | None, kept: Indices | None, axis: int
) -> tuple[Array, NDArray[np.float32] | None]:
    """Slice one axis of a tensor and of its gate; a gate that is 1 throughout becomes None."""
    if kept is not None:
        value = value.take(kept, axis)
        gate = None if gate is None else gate[kept]
    return value, None if gate is None or (gate == 1).all() else gate


def _fold(
    value: Array, rows: NDArray[np.float32] | None, columns: NDArray[np.float32] | None
) -> Array:
    if rows is None and columns is None:
        return value
    folded = value.astype(np.float32)
    if rows is not None:
        folded = folded * rows.reshape(-1, *[1] * (value.ndim - 1))
    return folded if columns is None else folded * columns
