"""The masked dense model: base + deltas, gates folded in fp32 (float64 in float64), rounded once.

Conversion must preserve its function. It is read tensor by tensor, whole or sliced, and is never
in memory as a whole. Folding: W' = diag(rows) · W · diag(columns), b' = rows · b.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.float_bits import is_finite
from converters.rules import closed_experts_of_masks
from sgate_serve.architecture.family import DOWN, MLP_ROLES
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.parts import Part
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPES, Array, TensorInfo
from sgate_serve.errors import CheckpointError
from sgate_serve.gates import Gates
from sgate_serve.plan import Gate, Masks

Indices = NDArray[np.int64]

# Half a MiB in bf16 and 1 MiB when folded: the fastest of 2**13 to 2**24 on an EPYC.
BLOCK_VALUES = 2**18


@dataclass(frozen=True)
class MaskedCheckpoint:
    """A base checkpoint with gates applied; without gates, the base itself.

    `gates` must have been checked against `base`. `precision` names the dtype that weights are
    rounded to; None keeps the stored one.
    """

    base: Checkpoint
    gates: Gates | None = None
    precision: str | None = None

    @cached_property
    def spec(self) -> ModelSpec:
        """The base's architecture in full dimensions, with the biases that training added."""
        spec = replace(self.base.spec, lowered={})
        return spec if self.gates is None else self.gates.spec(spec)

    @cached_property
    def masks(self) -> Masks:
        return {} if self.gates is None else self.gates.masks(replace(self.base.spec, lowered={}))

    @cached_property
    def closed_experts(self) -> Mapping[str, NDArray[np.bool_]]:
        """By router, flags over the experts that it must never choose."""
        return closed_experts_of_masks(self.spec, self.masks)

    @cached_property
    def _routers(self) -> frozenset[str]:
        layers = enumerate(self.spec.layers)
        return frozenset(self.spec.family.router_name(i) for i, layer in layers if layer.experts)

    @cached_property
    def _corrections(self) -> frozenset[str]:
        names = (self.spec.correction(index) for index in range(len(self.spec.layers)))
        return frozenset(name for name in names if name is not None)

    @cached_property
    def deltas(self) -> Mapping[str, TensorInfo]:
        return {} if self.gates is None else self.gates.deltas

    def dtype(self, name: str) -> str:
        """Return the name of the dtype that a tensor of the masked model is stored in.

        What corrects a router's choice is never rounded: others would be chosen.
        """
        if self.precision is not None and name not in self._corrections:
            return self.precision
        info = self.base.tensors.get(self._stored_name(name))
        if info is None:
            # An added bias takes the dtype of its own linear's weight.
            info = self.base.tensors[self._stored_name(name.removesuffix("bias") + "weight")]
        return info.dtype

    @cached_property
    def _modules(self) -> Mapping[str, int]:
        return self.spec.module_names()

    def _stored_name(self, name: str) -> str:
        """Return the base's name for a tensor; an untied head starts as the embedding."""
        family = self.spec.family
        if name == f"{family.head}.weight" and self.base.spec.tied_head:
            return f"{family.embedding}.weight"
        return name

    def _spread(self, module: str, stored: Array) -> Array:
        """Return a lowered matrix in full dimensions, with zeros where nothing is stored."""
        shape = self.spec.module_shape(self._modules[module], module)
        is_transposed = self.spec.family.is_transposed
        places = []
        for name, size in ((OUT_INDEX, shape[0]), (IN_INDEX, shape[1])):
            info = self.base.tensors.get(f"{module}.{name}")
            places.append(np.arange(size) if info is None else info.read())
        full = np.zeros(shape, stored.dtype)
        full[np.ix_(*places)] = stored.T if is_transposed else stored
        return full.T if is_transposed else full

    def read(self, name: str, rows: Indices | None = None, columns: Indices | None = None) -> Array:
        """Return one masked tensor, or the given rows and columns of it, in its stored dtype.

        Raises CheckpointError for NaN or infinite values, for which removal is not exact.
        """
        info = self.deltas.get(name) or self.base.tensors[self._stored_name(name)]
        value = info.read()
        if not is_finite(value):
            raise CheckpointError(
                f"{info.file}: tensor {name}{info.origin} holds NaN or infinite values; repair the "
                "checkpoint"
            )
        module, _, kind = name.rpartition(".")
        if kind == "weight" and name not in self.deltas and module in self.base.spec.lowered:
            value = self._spread(module, value)
        # A closed expert is one that its router never chooses, whatever its row holds.
        gate = Gate() if module in self._routers else self.masks.get(module, Gate())
        if self.spec.family.is_transposed and kind == "weight" and module in self._modules:
            gate = Gate(gate.columns, gate.rows)
        by_row = _Side.of(gate.rows, rows)
        by_column = _Side.of(gate.columns, columns) if value.ndim == 2 else _Side()
        return _masked_part(value, by_row, by_column, DTYPES[self.dtype(name)])

    def read_role(
        self, layer: int, role: str, rows: Indices | None = None, columns: Indices | None = None
    ) -> Array:
        """Return the masked (out, in) matrix of one role, or the given rows and columns of it."""
        parts = self.spec.parts(layer, role)
        if len(parts) > 1:
            return self._read_parts(parts, role, rows, columns)
        module, part = parts[0].module, parts[0].rows
        if len(self.spec.family.fused_roles(layer, role)) > 1:
            rows = part if rows is None else part[rows]
        if not self.spec.family.is_transposed:
            return self.read(f"{module}.weight", rows, columns)
        return self.read(f"{module}.weight", columns, rows).T

    def _read_parts(
        self, parts: Sequence[Part], role: str, rows: Indices | None, columns: Indices | None
    ) -> Array:
        """Return a role whose units several modules hold; only modules asked for are read."""
        units, found = columns if role == DOWN else rows, list[Array]()
        for part in parts:
            own = None
            if units is not None:
                inside = (units >= part.units.start) & (units < part.units.stop)
                own = units[inside] - part.units.start
            if own is None or own.size:
                sides = (rows, own) if role == DOWN else (own, columns)
                found.append(self.read(f"{part.module}.weight", *sides))
        assert found, "a role is asked for some of its units"
        return np.concatenate(found, axis=1 if role == DOWN else 0)

    def read_bias(self, layer: int, role: str) -> Array | None:
        """Return the masked bias of one role, or None if its linear has none."""
        if not self.spec.has_bias(layer, role):
            return None
        parts = self.spec.parts(layer, role)
        if self.spec.layers[layer].experts and role in MLP_ROLES:
            assert role != DOWN, "the output bias of experts differs by token"
            return np.concatenate([self.read(f"{part.module}.bias") for part in parts])
        return self.read(f"{parts[0].module}.bias")[parts[0].rows]


@dataclass(frozen=True)
class _Side:
    """The indices kept on one axis of a tensor (None keeps all) and their gates (None: all 1)."""

    kept: Indices | None = None
    gate: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, gate: NDArray[np.float32] | None, kept: Indices | None) -> "_Side":
        """Restrict the gate to the kept indices; a gate that is 1 throughout becomes None."""
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
    """Slice, fold and round a tensor, a few rows at a time to keep temporaries in the CPU cache."""
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
    wide = np.float64 if value.dtype == np.float64 else np.float32
    folded: NDArray[np.floating[Any]] = value.astype(wide)
    if rows is not None:
        folded *= rows.reshape(-1, *[1] * (value.ndim - 1))
    if columns is not None:
        folded *= columns
    return folded
