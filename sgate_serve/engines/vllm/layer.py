"""The context from which one layer is built, and its stored tensors in the form its parts load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.mixture import Mixture
from sgate_serve.architecture.parts import Rows
from sgate_serve.architecture.shapes import Lowered
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.vllm.sharding import PADDING, ShardedLayer, Sources

# The tensors of one linear, keyed by the last component of their names.
Tensors = Mapping[str, torch.Tensor]
WEIGHT, SCALE, BIAS = "weight", "weight_scale", "bias"


@dataclass(frozen=True)
class LayerContext:
    """One layer: its position in the model, its widths on each shard, and vLLM's settings."""

    spec: ModelSpec
    index: int
    vllm_config: Any
    num_shards: int

    @property
    def shape(self) -> ShardedLayer:
        return ShardedLayer(self.spec.layers[self.index], self.num_shards)

    @property
    def mixture(self) -> Mixture:
        """Where a family keeps experts, for a layer that has some."""
        assert self.spec.family.mixture is not None, "only such a family has experts"
        return self.spec.family.mixture

    @property
    def quant_config(self) -> Any:
        return self.vllm_config.quant_config

    def modules(self, roles: tuple[str, ...]) -> list[str]:
        """Return the modules that hold these roles, in the order of the roles."""
        held = self.spec.linear_shapes(self.index)
        return list(
            dict.fromkeys(
                self.spec.family.linear(self.index, role) for role in roles if role in held
            )
        )

    def roles(self, module: str) -> tuple[str, ...]:
        return self.spec.modules(self.index)[module]

    def lowered(self, module: str) -> Lowered:
        """Return a module's index vectors if this process keeps them: on a single shard only."""
        stored = self.spec.lowered.get(module, Lowered())
        return stored if self.num_shards == 1 else Lowered()

    def has_bias(self, role: str) -> bool:
        return self.spec.has_bias(self.index, role)

    def role_tensors(self, module: str, tensors: Tensors) -> dict[str, Tensors]:
        """Return each role's tensors at full width, padded for the shards; a missing bias is zero.

        Weights are [out, in], scales [out, 1] and biases [out] of the padded layer.
        """
        weight, scale = self.as_stored(tensors), tensors.get(SCALE)
        rows, columns = self._dims(module)
        weight = spread(weight, 0, _inverse(tensors.get(OUT_INDEX), rows))
        weight = spread(weight, 1, _inverse(tensors.get(IN_INDEX), columns))
        if scale is not None:
            scale = spread(scale, 0, _inverse(tensors.get(OUT_INDEX), rows), 1)
        bias = tensors.get(BIAS)
        parts: dict[str, Tensors] = {}
        for role in self.roles(module):
            own = self.spec.role_rows(self.index, role)
            of_rows, of_columns = self.shape.rows.get(role), self.shape.columns.get(role)
            part = {WEIGHT: spread(spread(take_rows(weight, own), 0, of_rows), 1, of_columns)}
            if scale is not None:
                part[SCALE] = spread(take_rows(scale, own), 0, of_rows, 1)
            own_bias = weight.new_zeros(len(own)) if bias is None else take_rows(bias, own)
            part[BIAS] = spread(own_bias, 0, of_rows)
            parts[role] = part
        return parts

    def replicated(self, role: str, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of a role with those of each head as often as shards have it."""
        heads, width = self.shape.stored.dims_of(role)
        if heads == "heads" or self.shape.replicas == 1:
            return rows
        by_head = rows.reshape(-1, width, *rows.shape[1:])
        return by_head.repeat_interleave(self.shape.replicas, 0).flatten(0, 1)

    def by_role(self, module: str, tensors: Tensors) -> Tensors:
        """Return a module's tensors with the rows of one role after those of another.

        An `out_index` is then that of the rows in this order.
        """
        if not self.spec.family.alternates(self.index) or len(self.roles(module)) == 1:
            return tensors
        order = torch.from_numpy(self.spec.module_rows(self.index, module))
        places, stored = order.argsort(), tensors.get(OUT_INDEX)
        placed = places if stored is None else places[stored]
        rows, found = placed.argsort(), dict(tensors)
        found |= {kind: tensors[kind][rows] for kind in (WEIGHT, SCALE) if kind in tensors}
        found |= {BIAS: tensors[BIAS][order]} if BIAS in tensors else {}
        return found if stored is None else {**found, OUT_INDEX: placed[rows]}

    def as_stored(self, tensors: Tensors) -> torch.Tensor:
        """Return the weight as (out, in), transposed if the family stores it as (in, out)."""
        weight = tensors[WEIGHT]
        return weight.t() if self.spec.family.is_transposed else weight

    def _dims(self, module: str) -> tuple[int, int]:
        shapes = self.spec.linear_shapes(self.index)
        roles = self.roles(module)
        return sum(shapes[role][0] for role in roles), shapes[roles[0]][1]


def _inverse(index: torch.Tensor | None, size: int) -> Sources | None:
    """Return the stored position of each of `size` dimensions, PADDING for those not stored."""
    if index is None:
        return None
    inverse = torch.full((size,), PADDING)
    inverse[index] = torch.arange(len(index))
    return inverse.numpy()


def take_rows(tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return some rows of a tensor, a view where they follow each other: most are large."""
    first, end = int(rows[0]), int(rows[-1]) + 1
    return tensor[first:end] if end - first == len(rows) else tensor[torch.from_numpy(rows)]


def spread(
    tensor: torch.Tensor, dim: int, sources: Sources | None, filling: float = 0
) -> torch.Tensor:
    """Select slices of `dim` by their sources; PADDING becomes `filling`."""
    if sources is None:
        return tensor
    index = torch.from_numpy(sources)
    if not (index == PADDING).any():
        return tensor.index_select(dim, index)
    shape = list(tensor.shape)
    shape[dim] = 1
    padded = torch.cat([tensor, tensor.new_full(shape, filling)], dim)
    return padded.index_select(dim, torch.where(index == PADDING, tensor.shape[dim], index))
