"""The tensors of a GGUF file under llama.cpp's names, made from those of a model one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from converters.to_gguf.architecture import (
    Architecture,
    FileLayer,
    architecture_of,
    check_family,
    file_layers,
)
from converters.to_gguf.storage import F32, Storage
from converters.to_onnx.rope import inverse_frequencies
from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    BLOCKS,
    DOWN,
    GATE,
    KEY,
    MLP,
    MLP_ROLES,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
)
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.rope import DEFAULT_TYPE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import Array

Floats = NDArray[np.float32]

ROLE_NAMES = {
    QUERY: "attn_q",
    KEY: "attn_k",
    VALUE: "attn_v",
    OUTPUT: "attn_output",
    GATE: "ffn_gate",
    UP: "ffn_up",
    DOWN: "ffn_down",
}
ROLES = {ATTENTION: ATTENTION_ROLES, MLP: MLP_ROLES}
NORM_NAMES = {ATTENTION: "attn_norm", MLP: "ffn_norm"}
# In the order of `Family.head_norms`: that of the query first.
HEAD_NORM_NAMES = ("attn_q_norm", "attn_k_norm")


@dataclass(frozen=True)
class FileTensor:
    """A tensor to write: its name, shape and type, and the call that computes it."""

    name: str
    shape: tuple[int, ...]
    kind: str
    values: Callable[[], Array]


@dataclass(frozen=True)
class FileModel:
    """A model as a GGUF file holds it; `read` returns its tensors by their own names."""

    spec: ModelSpec
    storage: Storage
    read: Callable[[str], Array]
    layers: tuple[FileLayer, ...]
    architecture: Architecture

    @classmethod
    def of(cls, spec: ModelSpec, storage: Storage, read: Callable[[str], Array]) -> "FileModel":
        """Raise PlanError, naming the obstacle, for a model that llama.cpp cannot compute."""
        check_family(spec)
        layers = file_layers(spec, storage.block)
        return cls(spec, storage, read, layers, architecture_of(spec, layers))

    def tensors(self) -> Iterator[FileTensor]:
        """Yield every tensor in the order of the file."""
        spec, family = self.spec, self.spec.family
        yield self._table("token_embd.weight", f"{family.embedding}.weight")
        frequencies = self._frequency_factors()
        if frequencies is not None:
            yield _vector("rope_freqs.weight", len(frequencies), lambda: frequencies)
        for number, layer in enumerate(self.layers):
            yield from self._layer_tensors(f"blk.{number}", layer)
        yield self._norm("output_norm.weight", f"{family.final_norm}.weight")
        if not spec.tied_head:
            yield self._table("output.weight", f"{family.head}.weight")

    def _layer_tensors(self, prefix: str, layer: FileLayer) -> Iterator[FileTensor]:
        family, source = self.spec.family, self.spec.layers[layer.index]
        shapes = layer.shape.linear_shapes(self.spec.hidden_size)
        for block in BLOCKS:
            if not layer.shape.has(block):
                continue
            norm = f"{family.norm_name(layer.index, block)}.weight"
            yield self._norm(
                f"{prefix}.{NORM_NAMES[block]}.weight", norm if source.has(block) else None
            )
            for role in ROLES[block]:
                yield from self._linear(f"{prefix}.{ROLE_NAMES[role]}", layer, role, shapes[role])
        names = family.head_norms if layer.shape.num_heads else ()
        for name, norm in zip(HEAD_NORM_NAMES, names, strict=False):
            own = f"{family.layer_name(layer.index)}.{norm}.weight"
            yield _vector(
                f"{prefix}.{name}.weight", layer.shape.head_dim, partial(self._floats, own)
            )

    def _linear(
        self, name: str, layer: FileLayer, role: str, shape: tuple[int, int]
    ) -> Iterator[FileTensor]:
        kind = self.storage.of_matrix(shape[1])
        yield FileTensor(f"{name}.weight", shape, kind, partial(self._weight, layer, role, shape))
        if self.spec.has_bias(layer.index, role):
            yield _vector(f"{name}.bias", shape[0], partial(self._bias, layer, role, shape[0]))

    def _weight(self, layer: FileLayer, role: str, shape: tuple[int, int]) -> Array:
        """Return a role's matrix, widened with zeros, its rows in llama.cpp's order."""
        full = np.zeros(shape, np.float32)
        if role in self.spec.linear_shapes(layer.index):
            module = self.spec.family.linear(layer.index, role)
            own = self._whole(module)[self.spec.role_rows(layer.index, role)]
            full[: own.shape[0], : own.shape[1]] = own
        return self._reordered(layer, role, full)

    def _bias(self, layer: FileLayer, role: str, size: int) -> Array:
        full = np.zeros(size, np.float32)
        if role in self.spec.linear_shapes(layer.index):
            own = self._floats(f"{self.spec.family.linear(layer.index, role)}.bias")
            own = own[self.spec.role_rows(layer.index, role)]
            full[: len(own)] = own
        return self._reordered(layer, role, full)

    def _whole(self, module: str) -> Floats:
        """Return a matrix in full dimensions: where it has index vectors, the rest is zero."""
        stored = self._floats(f"{module}.weight")
        lowered = self.spec.lowered.get(module)
        if lowered is None:
            return stored
        index = self.spec.module_names()[module]
        full = np.zeros(replace(self.spec, lowered={}).module_shape(index, module), np.float32)
        rows, columns = (
            np.arange(size) if count is None else self.read(f"{module}.{name}")
            for size, count, name in (
                (full.shape[0], lowered.rows, OUT_INDEX),
                (full.shape[1], lowered.columns, IN_INDEX),
            )
        )
        full[np.ix_(rows, columns)] = stored
        return full

    def _reordered(self, layer: FileLayer, role: str, rows: Floats) -> Floats:
        """Put the two dimensions that rotate together next to each other, if they must be."""
        if role not in (QUERY, KEY) or not self.architecture.pairs_neighbours:
            return rows
        halves = rows.reshape(-1, 2, layer.shape.head_dim // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)

    def _norm(self, name: str, own: str | None) -> FileTensor:
        """Return the weight of a residual norm, of ones where it only feeds zeros.

        It makes up for the width that llama.cpp divides by, if residual dimensions were removed.
        """
        size, gain = self.spec.hidden_size, np.float32(self.spec.norm_gain)

        def values() -> Array:
            return np.ones(size, np.float32) if own is None else self._floats(own) * gain

        return _vector(name, size, values)

    def _table(self, name: str, own: str) -> FileTensor:
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return FileTensor(name, shape, self.storage.of_table(shape[1]), partial(self.read, own))

    def _frequency_factors(self) -> Floats | None:
        """Return what llama.cpp divides the frequency of each pair by; None if it is 1 for all."""
        rope = self.spec.ropes[0]
        assert rope is not None
        if rope.rope_type == DEFAULT_TYPE:
            return None
        width = self.layers[0].shape.head_dim
        plain = inverse_frequencies({**rope.settings, "rope_type": DEFAULT_TYPE}, width)
        return plain / inverse_frequencies(rope.settings, width)

    def _floats(self, name: str) -> Floats:
        return self.read(name).astype(np.float32)


def _vector(name: str, size: int, values: Callable[[], Array]) -> FileTensor:
    return FileTensor(name, (size,), F32, values)
