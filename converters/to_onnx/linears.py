"""The linears of the graph, as lazily read fp32 matrices; some are stacked into one product.

Weights keep their stored [out, in] layout. Only index vectors are read before the file is written;
then matrices are read one at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np

from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.indices import Positions, inverse_index, stored_index
from sgate_serve.architecture.family import (
    ATTENTION,
    DECAY,
    DOWN,
    MLP,
    OUTPUT,
    READERS,
    RENEWAL,
)
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.checkpoint.int8 import SCALE, dequantize
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.onnx_format.precision import IN_FLOATS

Read = Callable[[], Array]


@dataclass(frozen=True)
class Matrix:
    """One matrix [out, in] and how to read it; `inputs` are the inputs that it has columns for.

    `scales` [out, 1] belong to weights that are stored as int8. `is_outer` is true for embeddings
    and for linears on top, false for the linears inside the blocks, which have `roles`. A matrix
    `of_expert` multiplies any number of tokens, by itself. `has_even_inputs` says that no few
    inputs are known to be far larger than the others, so that one scale suits a whole token.
    """

    name: str
    shape: tuple[int, int]
    weight: Read
    inputs: Positions | None = None
    scales: Read | None = None
    is_outer: bool = False
    roles: tuple[str, ...] = ()
    of_expert: bool = False
    has_even_inputs: bool = False


@dataclass(frozen=True)
class Linear:
    """Matrices that multiply the same input; their products are concatenated.

    `products` is the index of each output's product, or None if the products are the outputs. The
    bias has a value for every output.
    """

    name: str
    size: int
    matrices: tuple[Matrix, ...]
    products: Positions | None = None
    bias: Read | None = None


def read_fp32(checkpoint: Checkpoint, name: str) -> Array:
    """Return a tensor in fp32; exact for tensors stored as bf16, fp16 or fp32.

    An int8 weight is multiplied by the scale of its row.
    """
    array, scale = checkpoint.read(name), f"{name.removesuffix('weight')}{SCALE}"
    if array.dtype == np.int8:
        return dequantize(array, checkpoint.read(scale))
    return array.astype(np.float32)


def first_linear(checkpoint: Checkpoint, layer: int, block: str) -> Linear:
    """Return the linear that reads the stream.

    Outputs of attention are [q | k | v] with padded heads, with output gates [q | gate | k | v];
    those of a recurrent layer [q | k | v | gate], without `recurrent_shares`; those of an MLP
    [gate | up], or [up] in families without a gate.
    """
    roles = (role for role in READERS[block] if role not in IN_FLOATS)
    return _Layer(checkpoint, layer).linear(tuple(roles))


def recurrent_shares(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return how much a token renews and keeps of the state of each head, [renewal | decay]."""
    return _Layer(checkpoint, layer).linear((RENEWAL, DECAY))


def takes_all_inputs(linear: Linear) -> bool:
    """Return whether every matrix multiplies all inputs, so that their columns can be rescaled."""
    return all(matrix.inputs is None for matrix in linear.matrices)


def rescaled(linear: Linear, exponents: Array) -> Linear:
    """Multiply the columns by 2^exponents [in], of a linear that takes all inputs."""

    def changed(matrix: Matrix) -> Matrix:
        return replace(
            matrix,
            weight=lambda: np.ldexp(matrix.weight(), exponents),
            scales=None,  # rows of other columns need others than those that they are stored with
            has_even_inputs=True,
        )

    return replace(linear, matrices=tuple(map(changed, linear.matrices)))


def attention_output(checkpoint: Checkpoint, layer: int) -> Linear:
    """Return the output projection; its inputs are padded heads."""
    return _Layer(checkpoint, layer).linear((OUTPUT,))


def mlp_down(checkpoint: Checkpoint, layer: int) -> Linear:
    return _Layer(checkpoint, layer).linear((DOWN,))


def expert_gate_up(checkpoint: Checkpoint, layer: int, expert: int) -> Linear:
    """Return the first linear of one expert, outputs [gate | up]; the shared one is the last."""
    return _Layer(checkpoint, layer).linear(READERS[MLP], expert)


def expert_down(checkpoint: Checkpoint, layer: int, expert: int) -> Linear:
    return _Layer(checkpoint, layer).linear((DOWN,), expert)


def router(checkpoint: Checkpoint, name: str, rows: int) -> Matrix:
    """Return a tensor that chooses or weighs experts, [rows, hidden]."""
    weight = partial(read_fp32, checkpoint, name)
    shape = (rows, checkpoint.spec.hidden_size)
    return Matrix(name.removesuffix(".weight"), shape, weight, is_outer=True)


def table(checkpoint: Checkpoint, module: str, rows: int) -> Matrix:
    """Return an embedding or head of `rows` rows, each [hidden]."""
    weight = partial(read_fp32, checkpoint, f"{module}.weight")
    return Matrix(module, (rows, checkpoint.spec.hidden_size), weight, is_outer=True)


def position_table(checkpoint: Checkpoint) -> Matrix:
    """Return the position embeddings from the first position of a text on, each [hidden].

    If padding tokens have a position of their own, the one before the first, its row comes last.
    """
    spec, module = checkpoint.spec, f"{checkpoint.spec.family.position_table}"
    first, has_padding = spec.first_position, spec.family.has_padded_positions

    def weight() -> Array:
        rows = read_fp32(checkpoint, f"{module}.weight")
        return np.concatenate([rows[first:], rows[first - 1 : first]]) if has_padding else rows

    shape = (spec.max_positions + has_padding, spec.hidden_size)
    return Matrix(module, shape, weight, is_outer=True)


def head(checkpoint: Checkpoint) -> Linear:
    """Return the head; a tied head has the embedding's name, and so shares its initializer."""
    spec = checkpoint.spec
    head, name = spec.family.head, spec.family.embedding if spec.tied_head else spec.family.head
    has_bias = head in spec.extra_biases
    bias = partial(read_fp32, checkpoint, f"{head}.bias") if has_bias else None
    matrix = table(checkpoint, name, spec.vocab_size)
    return Linear(head, spec.vocab_size, (matrix,), bias=bias)


def classifier(checkpoint: Checkpoint) -> list[Linear]:
    """Return the linears of a classifier on top, in order."""
    tensors, shapes = checkpoint.spec.head.tensors, checkpoint.spec.tensor_shapes()
    made = []
    for name in (name.removesuffix(".weight") for name, axes in tensors.items() if len(axes) == 2):
        rows, columns = shapes[f"{name}.weight"]
        weight = partial(read_fp32, checkpoint, f"{name}.weight")
        matrix = Matrix(name, (rows, columns), weight, is_outer=True)
        has_bias = f"{name}.bias" in tensors
        bias = partial(read_fp32, checkpoint, f"{name}.bias") if has_bias else None
        made.append(Linear(name, rows, (matrix,), bias=bias))
    return made


class _Layer:
    """The linears of one layer: their dimensions, their stored part, and the padding of heads.

    A module holds the rows of one role, or of several that the family fuses. The outputs of query,
    key and value and the inputs of the output projection are heads. If rows are scattered, the
    scatter moves them to their padded places; otherwise the matrix itself is padded. Heads of
    recurrent layers have no padding.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self.checkpoint, self.spec, self.layer = checkpoint, checkpoint.spec, layer
        self.heads = HeadLayout.of(self.spec, layer)
        self.roles = self.spec.modules(layer)
        self.dims = self.spec.linear_shapes(layer)
        self.pads = not self.spec.layers[layer].is_recurrent

    def linear(self, roles: Sequence[str], expert: int | None = None) -> Linear:
        """Stack the modules of `roles`; adjacent modules with the same inputs form one matrix.

        Of a mixture, those of one expert.
        """
        modules = [
            name
            for name, held in self.roles.items()
            if set(held) <= set(roles) and self.spec.expert_of(name) == expert
        ]
        places = self._output_places(modules)
        size = sum(
            self._padded(self._rows(module), self._gives_heads(module)) for module in modules
        )
        groups = [list(group) for _, group in groupby(modules, self._inputs_key)]
        matrices = [self._matrix(group, is_padded=places is None) for group in groups]
        if places is not None:
            matrices[-1] = _with_zero_row(matrices[-1])
        return Linear(
            name=self._name(modules),
            size=size,
            matrices=tuple(matrices),
            products=None if places is None else inverse_index(places, size),
            bias=self._bias(modules),
        )

    def _name(self, modules: Sequence[str]) -> str:
        roles = (role for module in modules for role in self.roles[module])
        expert, name = self.spec.expert_of(modules[0]), self.spec.family.layer_name(self.layer)
        name = name if expert is None else f"{name}.expert.{expert}"
        return f"{name}.{'_'.join(roles)}"

    def _rows(self, module: str) -> int:
        """Return the number of outputs of a module, stored or not."""
        if self.spec.expert_of(module) is not None:
            return self.spec.module_shape(self.layer, module)[0]
        return sum(self.dims[role][0] for role in self.roles[module])

    def _gives_heads(self, module: str) -> bool:
        return self.roles[module][0] in READERS[ATTENTION]

    def _takes_heads(self, module: str) -> bool:
        return self.roles[module][0] == OUTPUT

    def _padded(self, size: int, is_heads: bool) -> int:
        pads = is_heads and self.pads
        return size // self.heads.head_dim * self.heads.width if pads else size

    def _places(self, size: int, is_heads: bool) -> Positions:
        if is_heads and self.pads:
            return self.heads.positions(size // self.heads.head_dim)
        return np.arange(size, dtype=np.int64)

    def _row_places(self, module: str) -> Positions:
        """Return the place of each row of a module among its padded outputs, role after role."""
        places = self._places(self._rows(module), self._gives_heads(module))
        return places[np.argsort(self.spec.module_rows(self.layer, module))]

    def _pad_rows(self, module: str, array: Array) -> Array:
        """Return all rows of a module at their places, zeros between them."""
        size = self._padded(self._rows(module), self._gives_heads(module))
        padded = np.zeros((size, *array.shape[1:]), array.dtype)
        padded[self._row_places(module)] = array
        return padded

    def _index(self, module: str, kind: str) -> Positions | None:
        return stored_index(self.checkpoint, module, kind)

    def _inputs_key(self, module: str) -> bytes | None:
        index = self._index(module, IN_INDEX)
        return None if index is None else index.tobytes()

    def _inputs(self, module: str) -> Positions | None:
        """Return the inputs that a module's matrix has columns for, in the padded layout."""
        index = self._index(module, IN_INDEX)
        if index is None:
            return None
        size = self.dims[self.roles[module][0]][1]
        return self._places(size, self._takes_heads(module))[index]

    def _output_places(self, modules: Sequence[str]) -> Positions | None:
        """Return the output place of every stored row, or None if no rows are scattered."""
        indices = [self._index(module, OUT_INDEX) for module in modules]
        if all(index is None for index in indices):
            return None
        start, places = 0, []
        for module, index in zip(modules, indices, strict=True):
            here = self._row_places(module)
            places.append(start + (here if index is None else here[index]))
            start += self._padded(self._rows(module), self._gives_heads(module))
        return np.concatenate(places)

    def _matrix(self, modules: Sequence[str], is_padded: bool) -> Matrix:
        """Stack matrices that have the same inputs; pad heads among their rows if `is_padded`."""
        inputs = self._inputs(modules[0])
        stored = [self.spec.module_shape(self.layer, module) for module in modules]
        pads_rows = is_padded and self._gives_heads(modules[0])
        pads_columns = inputs is None and self.pads and self._takes_heads(modules[0])

        def weight() -> Array:
            return np.concatenate([part(module) for module in modules])

        def part(module: str) -> Array:
            array = read_fp32(self.checkpoint, f"{module}.weight")
            array = array.T if self.spec.family.is_transposed else array
            array = self._pad_rows(module, array) if pads_rows else array
            return self.heads.pad_columns(array) if pads_columns else array

        def scales() -> Array:
            parts = [read_fp32(self.checkpoint, f"{module}.{SCALE}") for module in modules]
            if pads_rows:
                # Padding rows are zero; like every zero row, they get the scale 1.
                padded = map(self._pad_rows, modules, parts)
                parts = [np.where(scale, scale, 1) for scale in padded]
            return np.concatenate(parts)

        rows = sum(self._padded(shape[0], pads_rows) for shape in stored)
        shape = (rows, self._padded(stored[0][1], pads_columns))
        has_scales = self.checkpoint.is_int8
        return Matrix(
            self._name(modules),
            shape,
            weight,
            inputs,
            scales if has_scales else None,
            roles=tuple(role for module in modules for role in self.roles[module]),
            of_expert=self.spec.expert_of(modules[0]) is not None,
            # The heads of recurrent layers are multiplied by gates, like the units of an MLP.
            has_even_inputs=self._takes_heads(modules[0]) and self.pads,
        )

    def _bias(self, modules: Sequence[str]) -> Read | None:
        """Stack the biases of `modules`, zeros for those without; None if none has a bias."""
        if not any(self._has_bias(module) for module in modules):
            return None
        return lambda: np.concatenate([self._module_bias(module) for module in modules])

    def _has_bias(self, module: str) -> bool:
        return self.spec.has_bias(self.layer, self.roles[module][0])

    def _module_bias(self, module: str) -> Array:
        bias = np.zeros(self._rows(module), np.float32)
        if self._has_bias(module):
            bias = read_fp32(self.checkpoint, f"{module}.bias")
        return self._pad_rows(module, bias) if self._gives_heads(module) else bias


def _with_zero_row(matrix: Matrix) -> Matrix:
    """Append a zero row, whose product is used for outputs without a stored row."""
    rows, columns = matrix.shape

    def weight() -> Array:
        return np.concatenate([matrix.weight(), np.zeros((1, columns), np.float32)])

    def scales() -> Array:
        assert matrix.scales is not None, "only a matrix with scales is asked for them"
        return np.concatenate([matrix.scales(), np.ones((1, 1), np.float32)])

    has_scales = matrix.scales is not None
    return replace(
        matrix, shape=(rows + 1, columns), weight=weight, scales=scales if has_scales else None
    )
