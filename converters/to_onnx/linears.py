"""The linears of the graph as fp32 sources: packed where one product serves several of them.

Weights keep their stored [out, in] layout; nothing but index vectors is read before the file is
written, and then one matrix at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np

from converters.to_onnx.heads import (
    pad_head_columns,
    pad_head_rows,
    padded_head_dim,
    padded_positions,
)
from converters.to_onnx.indices import Positions, inverse_index, stored_index
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.family import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE
from sgate_serve.spec import IN_INDEX, OUT_INDEX
from sgate_serve.tensor_files import Array

Read = Callable[[], Array]


@dataclass(frozen=True)
class Matrix:
    """One matrix [out, in] and how to read it; `inputs` are those that it has columns for."""

    name: str
    shape: tuple[int, int]
    weight: Read
    inputs: Positions | None = None


@dataclass(frozen=True)
class Linear:
    """What one input is multiplied by: matrices, whose products stand side by side.

    `products` says for each output which of those it takes, None if they are the outputs already;
    the bias has a value for every output.
    """

    name: str
    size: int
    matrices: tuple[Matrix, ...]
    products: Positions | None = None
    bias: Read | None = None


def read_fp32(checkpoint: Checkpoint, name: str) -> Array:
    """Return a tensor in fp32; exact for tensors stored as bf16, fp16 or fp32."""
    return checkpoint.read(name).astype(np.float32)


def query_key_value(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return the readers of the attention block, outputs [q | k | v] with their heads padded."""
    return _Layer(checkpoint, layer).linear((QUERY, KEY, VALUE))


def attention_output(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return the output projection; it reads padded heads."""
    return _Layer(checkpoint, layer).linear((OUTPUT,))


def gate_up(checkpoint: Checkpoint, layer: int) -> Linear:
    return _Layer(checkpoint, layer).linear((GATE, UP))


def mlp_down(checkpoint: Checkpoint, layer: int) -> Linear:
    return _Layer(checkpoint, layer).linear((DOWN,))


def head(checkpoint: Checkpoint) -> Linear:
    """Return the head; a tied one bears the embedding's name and so shares its initializer."""
    spec = checkpoint.spec
    head, name = spec.family.head, spec.family.embedding if spec.tied_head else spec.family.head
    shape = (spec.vocab_size, spec.hidden_size)
    matrix = Matrix(name, shape, partial(read_fp32, checkpoint, f"{name}.weight"))
    has_bias = head in spec.extra_biases
    bias = partial(read_fp32, checkpoint, f"{head}.bias") if has_bias else None
    return Linear(head, spec.vocab_size, (matrix,), bias=bias)


class _Layer:
    """The linears of one layer: their own dimensions, what of them is stored, how heads are padded.

    Outputs of query, key and value and inputs of the output projection are heads. Where rows are
    scattered, the scatter puts them at their padded places; elsewhere the matrix is padded.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self.checkpoint, self.spec, self.layer = checkpoint, checkpoint.spec, layer
        self.head_dim = self.spec.layers[layer].head_dim
        self.dims = self.spec.linear_shapes(layer)

    def linear(self, roles: Sequence[str]) -> Linear:
        """Stack the linears of `roles`, neighbours that read the same inputs in one matrix."""
        places = self._output_places(roles)
        size = sum(self._padded(self.dims[role][0], role in (QUERY, KEY, VALUE)) for role in roles)
        groups = [list(group) for _, group in groupby(roles, self._inputs_key)]
        matrices = [self._matrix(group, is_padded=places is None) for group in groups]
        if places is not None:
            matrices[-1] = _with_zero_row(matrices[-1])
        return Linear(
            name=f"{self.spec.family.layer_name(self.layer)}.{'_'.join(roles)}",
            size=size,
            matrices=tuple(matrices),
            products=None if places is None else inverse_index(places, size),
            bias=self._bias(roles),
        )

    def _module(self, role: str) -> str:
        return self.spec.family.linear(self.layer, role)

    def _padded(self, size: int, is_heads: bool) -> int:
        return size // self.head_dim * padded_head_dim(self.head_dim) if is_heads else size

    def _index(self, role: str, kind: str) -> Positions | None:
        return stored_index(self.checkpoint, self._module(role), kind)

    def _inputs_key(self, role: str) -> bytes | None:
        index = self._index(role, IN_INDEX)
        return None if index is None else index.tobytes()

    def _inputs(self, role: str) -> Positions | None:
        """Return the inputs that a role's matrix has columns for, in the padded layout."""
        index = self._index(role, IN_INDEX)
        if index is None or role != OUTPUT:
            return index
        return padded_positions(self.dims[role][1] // self.head_dim, self.head_dim)[index]

    def _output_places(self, roles: Sequence[str]) -> Positions | None:
        """Return the place of every stored row among the outputs, None if no rows are scattered."""
        indices = [self._index(role, OUT_INDEX) for role in roles]
        if all(index is None for index in indices):
            return None
        start, places = 0, []
        for role, index in zip(roles, indices, strict=True):
            size, is_heads = self.dims[role][0], role in (QUERY, KEY, VALUE)
            here = np.arange(size, dtype=np.int64)
            if is_heads:
                here = padded_positions(size // self.head_dim, self.head_dim)
            places.append(start + (here if index is None else here[index]))
            start += self._padded(size, is_heads)
        return np.concatenate(places)

    def _matrix(self, roles: Sequence[str], is_padded: bool) -> Matrix:
        """Stack the matrices of roles that read the same inputs, rows padded where `is_padded`."""
        spec, inputs = self.spec, self._inputs(roles[0])
        stored = [spec.module_shape(self.layer, self._module(role)) for role in roles]
        pads_rows = is_padded and roles[0] in (QUERY, KEY, VALUE)
        pads_columns = inputs is None and roles[0] == OUTPUT

        def weight() -> Array:
            return np.concatenate([part(role) for role in roles])

        def part(role: str) -> Array:
            array = read_fp32(self.checkpoint, f"{self._module(role)}.weight")
            array = pad_head_rows(array, self.head_dim) if pads_rows else array
            return pad_head_columns(array, self.head_dim) if pads_columns else array

        rows = sum(self._padded(shape[0], pads_rows) for shape in stored)
        shape = (rows, self._padded(stored[0][1], pads_columns))
        name = f"{spec.family.layer_name(self.layer)}.{'_'.join(roles)}"
        return Matrix(name, shape, weight, inputs)

    def _bias(self, roles: Sequence[str]) -> Read | None:
        """Stack the biases of `roles`; where only some have one, the others get zeros."""
        if not any(self.spec.has_bias(self.layer, role) for role in roles):
            return None
        return lambda: np.concatenate([self._role_bias(role) for role in roles])

    def _role_bias(self, role: str) -> Array:
        bias = np.zeros(self.dims[role][0], np.float32)
        if self.spec.has_bias(self.layer, role):
            bias = read_fp32(self.checkpoint, f"{self._module(role)}.bias")
        return pad_head_rows(bias, self.head_dim) if role in (QUERY, KEY, VALUE) else bias


def _with_zero_row(matrix: Matrix) -> Matrix:
    """Add the row whose product is zero, for the outputs that no stored row computes."""
    rows, columns = matrix.shape

    def weight() -> Array:
        return np.concatenate([matrix.weight(), np.zeros((1, columns), np.float32)])

    return Matrix(matrix.name, (rows + 1, columns), weight, matrix.inputs)
