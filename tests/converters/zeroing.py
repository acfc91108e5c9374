"""Ways to make parts of a small model zero, so that every rule of the compiler has its cases.

Each way takes the weights and a generator, and writes zeros in place. Those about the residual
stream choose among its first dimensions, and units among the first units, so that several ways
meet: a row that reads only dying columns becomes a zero row later.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from sgate_serve.architecture.family import (
    BLOCKS,
    DOWN,
    EXPERTS,
    KEY,
    MLP_ROLES,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    UP,
    VALUE,
    WRITERS,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.models.names import name_in

SHARES = (0.25, 0.5, 0.9, 1.0)
FEW = 6


@dataclass(frozen=True)
class Weights:
    """A model's parameters by role, as views: writing them writes the model.

    The experts of a layer are copied into one matrix for each role, and so are rows that alternate
    with those of other roles; `store` writes both back.
    """

    model: PreTrainedModel
    spec: ModelSpec
    stacks: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    copies: dict[tuple[int, str, str], torch.Tensor] = field(default_factory=dict)
    biases: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)

    def named(self, name: str) -> torch.Tensor | None:
        # What corrects a router's choice is a buffer.
        own: dict[str, torch.Tensor] = dict(self.model.named_buffers())
        own |= dict(self.model.named_parameters(remove_duplicate=False))
        found = own.get(name, own.get(name_in(self.model, self.spec.family, name)))
        return None if found is None else found.data

    def matrix(self, layer: int, role: str) -> torch.Tensor:
        if self.spec.layers[layer].experts and role in MLP_ROLES:
            parts = self._experts(layer, role)
            if (layer, role) not in self.stacks:
                self.stacks[layer, role] = torch.cat(parts, dim=int(role == DOWN))
            return self.stacks[layer, role]
        weight = self.named(f"{self.spec.family.linear(layer, role)}.weight")
        assert weight is not None, role
        weight = weight.T if self.spec.family.is_transposed else weight
        return self._rows(weight, layer, role, "weight")

    def _rows(self, tensor: torch.Tensor, layer: int, role: str, kind: str) -> torch.Tensor:
        rows = self.spec.role_rows(layer, role)
        if rows[-1] - rows[0] + 1 == len(rows):
            return tensor[rows[0] : rows[-1] + 1]
        return self.copies.setdefault((layer, role, kind), tensor[rows])

    def store(self) -> None:
        for (layer, role), bias in self.biases.items():
            experts = self._experts_of(layer)
            both = experts.get_parameter("gate_up_proj_bias").data[:, int(role == UP) :: 2]
            both.copy_(bias.view_as(both))
        for (layer, role, kind), copy in self.copies.items():
            tensor = self.named(f"{self.spec.family.linear(layer, role)}.{kind}")
            assert tensor is not None, role
            tensor[self.spec.role_rows(layer, role)] = copy
        for (layer, role), stack in self.stacks.items():
            parts = self._experts(layer, role)
            sizes = [part.shape[int(role == DOWN)] for part in parts]
            for part, value in zip(
                parts, torch.split(stack, sizes, dim=int(role == DOWN)), strict=True
            ):
                part.copy_(value)

    def _experts(self, layer: int, role: str) -> list[torch.Tensor]:
        """Return views of a role's matrix in each expert of transformers' stock class."""
        experts: Any = self._experts_of(layer)
        if self._are_transposed:
            both, half = experts.gate_up_proj.data, int(role == UP)
            stack = experts.down_proj.data if role == DOWN else both[..., half::2]
            parts = [matrix.T for matrix in stack]
        elif role == DOWN:
            parts = list(experts.down_proj.data)
        else:
            parts = [both.chunk(2)[int(role == UP)] for both in experts.gate_up_proj.data]
        if self.spec.layers[layer].shared_units:
            shared = self.named(f"{self.spec.family.expert_linear(layer, None, role)}.weight")
            assert shared is not None, layer
            parts.append(shared)
        return parts

    @property
    def _are_transposed(self) -> bool:
        mixture = self.spec.family.mixture
        return mixture is not None and mixture.stacks == "alternate"

    def bias(self, layer: int, role: str) -> torch.Tensor | None:
        """Return a role's bias; of experts those of all units, or of down [hidden, experts]."""
        if self.spec.layers[layer].experts and role in MLP_ROLES:
            return self._expert_biases(layer, role) if self._are_transposed else None
        bias = self.named(f"{self.spec.family.linear(layer, role)}.bias")
        return None if bias is None else self._rows(bias, layer, role, "bias")

    def _expert_biases(self, layer: int, role: str) -> torch.Tensor:
        experts = self._experts_of(layer)
        if role == DOWN:
            return experts.get_parameter("down_proj_bias").data.T
        both = experts.get_parameter("gate_up_proj_bias").data[:, int(role == UP) :: 2]
        return self.biases.setdefault((layer, role), both.reshape(-1))

    def _experts_of(self, layer: int) -> nn.Module:
        name = name_in(self.model, self.spec.family, self.spec.family.experts_name(layer))
        experts: nn.Module = self.model.get_submodule(name)
        return experts


Random = np.random.Generator
Way = Callable[[Weights, Random], None]


def some(random: Random, size: int) -> torch.Tensor:
    """Return flags over `size` places: a random share of them, sometimes all."""
    return torch.from_numpy(random.random(size) < random.choice(SHARES))


def a_layer(weights: Weights, random: Random) -> int:
    return int(random.integers(len(weights.spec.layers)))


def a_role(weights: Weights, layer: int, random: Random) -> str:
    return str(random.choice(list(weights.spec.linear_shapes(layer))))


def with_gates(weights: Weights, layer: int, roles: list[str]) -> list[str]:
    """Return roles of a layer's heads, and their output gates where it has them."""
    return roles + [OUTPUT_GATE] * (OUTPUT_GATE in weights.spec.linear_shapes(layer))


def rows(weights: Weights, random: Random) -> None:
    """Zero rows, of half of which the bias stays alive."""
    layer = a_layer(weights, random)
    _zero_rows(weights, layer, a_role(weights, layer, random), random)


def query_rows(weights: Weights, random: Random) -> None:
    _zero_rows(weights, a_layer(weights, random), QUERY, random)


def _zero_rows(weights: Weights, layer: int, role: str, random: Random) -> None:
    matrix, bias = weights.matrix(layer, role), weights.bias(layer, role)
    zero = some(random, len(matrix))
    matrix[zero] = 0
    if bias is not None and random.random() < 0.5:
        bias[zero] = 0


def columns(weights: Weights, random: Random) -> None:
    layer = a_layer(weights, random)
    matrix = weights.matrix(layer, a_role(weights, layer, random))
    matrix[:, some(random, matrix.shape[1])] = 0


def units(weights: Weights, random: Random) -> None:
    """Zero whole MLP units: the rows of every role that makes them, biases kept."""
    layer = a_layer(weights, random)
    zero = some(random, weights.spec.layers[layer].mlp_units)
    for role in weights.spec.linear_shapes(layer):
        if role in ("gate", UP):
            weights.matrix(layer, role)[zero] = 0


def few_units(weights: Weights, random: Random) -> None:
    """Zero some of the first units in the down projection, or all that others read nothing of."""
    layer = a_layer(weights, random)
    down = weights.matrix(layer, DOWN)
    if random.random() < 0.5:
        down[:, :FEW][:, some(random, min(FEW, down.shape[1]))] = 0
    else:
        down[some(random, len(down)), FEW:] = 0


def _of_heads(weights: Weights, layer: int, random: Random) -> str:
    shape = weights.spec.layers[layer]
    own = [KEY, shape.value_role] if shape.has_keys else []
    return str(random.choice(with_gates(weights, layer, [QUERY, *own, OUTPUT])))


def whole_heads(weights: Weights, random: Random) -> None:
    """Zero heads of one role: queries, keys and values by rows, outputs by columns."""
    layer = a_layer(weights, random)
    role = _of_heads(weights, layer, random)
    matrix, bias = weights.matrix(layer, role), weights.bias(layer, role)
    matrix = matrix.T if role == OUTPUT else matrix
    _, width = weights.spec.layers[layer].dims_of(role)
    zero = some(random, len(matrix) // width).repeat_interleave(width)
    matrix[zero] = 0
    if role != OUTPUT and bias is not None and random.random() < 0.7:
        bias[zero] = 0


def head_dims(weights: Weights, random: Random) -> None:
    """Zero the same dimensions in every head of a role, mostly in rotary pairs."""
    layer = a_layer(weights, random)
    role = _of_heads(weights, layer, random)
    matrix, bias = weights.matrix(layer, role), weights.bias(layer, role)
    matrix = matrix.T if role == OUTPUT else matrix
    _, width = weights.spec.layers[layer].dims_of(role)
    half = weights.spec.rotary_dims(layer) // 2
    dims = some(random, width)
    if random.random() < 0.7:
        dims[half : 2 * half] = dims[:half]
    zero = dims.repeat(len(matrix) // width)
    matrix[zero] = 0
    if role != OUTPUT and bias is not None and random.random() < 0.7:
        bias[zero] = 0


def silent_writers(weights: Weights, random: Random) -> None:
    """Zero the whole last matrix of blocks, sometimes of several; half of the biases as well."""
    for layer in range(len(weights.spec.layers)):
        for block in BLOCKS:
            if random.random() < 0.4:
                weights.matrix(layer, WRITERS[block])[:] = 0
                _zero_bias(weights, layer, WRITERS[block], random)


def silent_readers(weights: Weights, random: Random) -> None:
    """Zero what a block reads by, so that all of it is constant."""
    layer = a_layer(weights, random)
    for role in with_gates(weights, layer, [VALUE]) if random.random() < 0.5 else ("gate", UP):
        if role in weights.spec.linear_shapes(layer):
            weights.matrix(layer, role)[:] = 0
            _zero_bias(weights, layer, role, random)


def _zero_bias(weights: Weights, layer: int, role: str, random: Random) -> None:
    bias = weights.bias(layer, role)
    if bias is not None and random.random() < 0.5:
        bias[some(random, len(bias))] = 0


def biases(weights: Weights, random: Random) -> None:
    layer = a_layer(weights, random)
    _zero_bias(weights, layer, a_role(weights, layer, random), random)


def norms(weights: Weights, random: Random) -> None:
    """Zero effective weights of one norm, sometimes all, and perhaps its bias."""
    family, layer = weights.spec.family, a_layer(weights, random)
    names = weights.spec.norms(layer)
    names += list(weights.spec.head_norm_sizes(layer))
    names += [name for name in (family.final_norm, family.embedding_norm) if name]
    name = str(random.choice(names))
    weight, bias = weights.named(f"{name}.weight"), weights.named(f"{name}.bias")
    assert weight is not None, name
    zero = some(random, len(weight))
    weight[zero] = -family.norm_offset
    if bias is not None and random.random() < 0.5:
        bias[zero & some(random, len(bias))] = 0


def unwrite(weights: Weights, dims: Sequence[int], depth: int) -> None:
    """Let neither the embeddings nor the first `depth` layers write some residual dimensions."""
    for name, axes in weights.spec.family.outside.items():
        table = weights.named(name)
        if len(axes) == 2 and table is not None:
            table[:, dims] = 0
    for layer in range(depth):
        for block in BLOCKS:
            weights.matrix(layer, WRITERS[block])[dims] = 0
            bias = weights.bias(layer, WRITERS[block])
            if bias is not None:
                bias[dims] = 0


def stream(weights: Weights, random: Random) -> None:
    """Leave some of the first residual dimensions unwritten up to some depth, often for good."""
    num_layers = len(weights.spec.layers)
    dims = some(random, FEW).nonzero()[:, 0].tolist()
    depth = int(random.integers(num_layers + 1)) if random.random() < 0.5 else num_layers
    unwrite(weights, dims, depth)


def few_inputs(weights: Weights, random: Random) -> None:
    """Let rows read the first residual dimensions alone."""
    layer = a_layer(weights, random)
    role = str(
        random.choice([r for r in weights.spec.linear_shapes(layer) if r not in (OUTPUT, DOWN)])
    )
    matrix = weights.matrix(layer, role)
    matrix[some(random, len(matrix)), FEW:] = 0


def scattered(weights: Weights, random: Random) -> None:
    layer = a_layer(weights, random)
    matrix = weights.matrix(layer, a_role(weights, layer, random))
    density = random.choice([0.3, 0.1, 0.02])
    matrix *= torch.from_numpy(random.random(tuple(matrix.shape)) < density)


def choices(weights: Weights, random: Random) -> None:
    """Zero rows of a router, or all that an expert writes: neither closes an expert."""
    layer = a_layer(weights, random)
    for name, axes in weights.spec.router_tensors(layer).items():
        router = weights.named(name)
        assert router is not None, name
        if EXPERTS in axes:
            router[some(random, len(router)) & some(random, len(router))] = 0
    for span in weights.spec.layers[layer].expert_spans if random.random() < 0.7 else ():
        if random.random() < 0.5:
            weights.matrix(layer, DOWN)[:, span] = 0


def on_top(weights: Weights, random: Random) -> None:
    """Zero rows of the inner linear on top, biases kept or not, and columns of the outer."""
    dense = weights.spec.head.dense
    if dense is None:
        return
    inner, bias = weights.named(f"{dense.inner}.weight"), weights.named(f"{dense.inner}.bias")
    outer = weights.named(f"{dense.outer}.weight")
    assert inner is not None and outer is not None, dense
    zero = some(random, len(inner))
    inner[zero] = 0
    unbiased = zero & some(random, len(inner))
    if bias is not None:
        bias[unbiased] = 0
    outer[:, some(random, len(inner))] = 0


WAYS: Mapping[str, Way] = {
    way.__name__: way
    for way in (
        rows,
        query_rows,
        columns,
        units,
        few_units,
        whole_heads,
        head_dims,
        silent_writers,
        silent_readers,
        biases,
        norms,
        stream,
        few_inputs,
        scattered,
        choices,
        on_top,
    )
}


def make_zeros(weights: Weights, ways: list[tuple[str, int]]) -> None:
    """Apply ways by name, each with the seed of its own generator."""
    with torch.no_grad():
        for name, seed in ways:
            WAYS[name](weights, np.random.default_rng(seed))
        weights.store()
