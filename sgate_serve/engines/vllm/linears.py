"""The linears of a block: vLLM's own, at the stored widths, with index vectors around them.

Under tensor parallelism readers are split by rows, writers by columns, as everywhere in vLLM.
"""

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from sgate_serve.engines.vllm.layer import BIAS, SCALE, WEIGHT, LayerContext, Tensors
from sgate_serve.family import ATTENTION, KEY, QUERY, READERS, VALUE, WRITERS
from sgate_serve.shapes import Lowered
from sgate_serve.spec import IN_INDEX, OUT_INDEX

QKV_SHARDS = {QUERY: "q", KEY: "k", VALUE: "v"}


class Readers(nn.Module):
    """The linears that read a block's input: [q | k | v], [gate | up], or up alone.

    Without index vectors they are one matmul. Otherwise each module has its own, behind a gather
    of the columns that it reads, and one scatter puts all rows in place.
    """

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__()
        self.layer = layer
        self.modules_read = layer.modules(READERS[block])
        self.roles = [role for module in self.modules_read for role in layer.roles(module)]
        self.sizes = self._sizes_of_one_shard()
        lowered = [layer.lowered(module) for module in self.modules_read]
        self.is_fused = all(each == Lowered() for each in lowered)
        if self.is_fused:
            self.linears = nn.ModuleList([self._fused(block, prefix)])
            return
        self.linears = nn.ModuleList(
            self._single(module, f"{prefix}_{number}")
            for number, module in enumerate(self.modules_read)
        )
        for number, each in enumerate(lowered):
            self.register_buffer(f"in_index_{number}", _index(each.columns))
        is_scattered = any(each.rows is not None for each in lowered)
        rows = [layer.spec.module_shape(layer.index, module)[0] for module in self.modules_read]
        self.register_buffer(OUT_INDEX, _index(sum(rows) if is_scattered else None))
        has_bias = any(layer.has_bias(role) for role in self.roles)
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes))) if has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, sum of the sizes of one shard] for x [tokens, hidden]."""
        if self.is_fused:
            return self.linears[0](x)[0]
        parts = []
        for number, linear in enumerate(self.linears):
            index = getattr(self, f"in_index_{number}")
            parts.append(linear(x if index is None else x.index_select(-1, index))[0])
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        y = y if self.out_index is None else scatter(y, self.out_index, sum(self.sizes))
        return y if self.bias is None else y + self.bias

    def load(self, module: str, tensors: Tensors) -> None:
        """Take over the stored tensors of one module."""
        if self.is_fused:
            self._load_fused(module, tensors)
            return
        number = self.modules_read.index(module)
        linear = self.linears[number]
        load(linear.weight, self.layer.as_stored(tensors), 0)
        if SCALE in tensors:
            load(linear.weight_scale, tensors[SCALE], 0)
        if IN_INDEX in tensors:
            getattr(self, f"in_index_{number}").copy_(tensors[IN_INDEX])
        self._place_rows(number, tensors.get(OUT_INDEX))
        if BIAS in tensors:
            start = self._start_of(number)
            self.bias.data[start : start + len(tensors[BIAS])].copy_(tensors[BIAS])

    def _place_rows(self, number: int, index: torch.Tensor | None) -> None:
        """Put a module's rows where they belong among all dimensions of all modules."""
        if self.out_index is None:
            return
        layer = self.layer
        stored = [layer.spec.module_shape(layer.index, module)[0] for module in self.modules_read]
        rows = torch.arange(stored[number]) if index is None else index
        first = sum(stored[:number])
        self.out_index[first : first + stored[number]].copy_(rows + self._start_of(number))

    def _start_of(self, number: int) -> int:
        """Return the first dimension of a module, on a single shard."""
        before = [role for module in self.modules_read[:number] for role in self.layer.roles(module)]
        return sum(self.sizes[self.roles.index(role)] for role in before)

    def _load_fused(self, module: str, tensors: Tensors) -> None:
        linear = self.linears[0]
        for role, part in self.layer.role_tensors(module, tensors).items():
            shard = QKV_SHARDS.get(role, self.roles.index(role))
            load(linear.weight, part[WEIGHT], shard)
            if SCALE in part:
                load(linear.weight_scale, part[SCALE], shard)
            if linear.bias is not None:
                load(linear.bias, part[BIAS], shard)

    def _sizes_of_one_shard(self) -> list[int]:
        shape = self.layer.shape
        width = shape.stored.head_dim
        heads = {QUERY: shape.num_heads, KEY: shape.num_kv_heads, VALUE: shape.num_kv_heads}
        units = shape.padded.mlp_units // shape.num_shards
        return [heads[role] * width if role in heads else units for role in self.roles]

    def _fused(self, block: str, prefix: str) -> nn.Module:
        layer, shape = self.layer, self.layer.shape
        has_bias = any(layer.has_bias(role) for role in self.roles)
        settings = {"bias": has_bias, "quant_config": layer.quant_config, "prefix": prefix}
        hidden = layer.spec.hidden_size
        if block != ATTENTION:
            sizes = [shape.padded.mlp_units] * len(self.roles)
            return MergedColumnParallelLinear(hidden, sizes, **settings)
        heads, kv_heads = shape.padded.num_heads, shape.padded.num_kv_heads
        return QKVParallelLinear(hidden, shape.stored.head_dim, heads, kv_heads, **settings)

    def _single(self, module: str, prefix: str) -> nn.Module:
        rows, columns = self.layer.spec.module_shape(self.layer.index, module)
        settings = {"bias": False, "quant_config": self.layer.quant_config, "prefix": prefix}
        return MergedColumnParallelLinear(columns, [rows], **settings)


class Writer(nn.Module):
    """The linear that writes a block's output onto the residual stream."""

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__()
        self.layer, role = layer, WRITERS[block]
        self.role, self.hidden_size = role, layer.spec.hidden_size
        self.module_written = layer.spec.family.linear(layer.index, role)
        lowered = layer.lowered(self.module_written)
        self.is_lowered = lowered != Lowered()
        columns = len(layer.shape.columns[role])
        rows, has_bias = self.hidden_size, layer.has_bias(role)
        if self.is_lowered:
            rows, columns = layer.spec.module_shape(layer.index, self.module_written)
        self.linear = RowParallelLinear(
            columns,
            rows,
            bias=has_bias and not self.is_lowered,
            quant_config=layer.quant_config,
            prefix=prefix,
        )
        self.register_buffer(IN_INDEX, _index(lowered.columns))
        self.register_buffer(OUT_INDEX, _index(lowered.rows))
        self.bias = None
        if self.is_lowered and has_bias:
            self.bias = nn.Parameter(torch.zeros(self.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, hidden] for the block's inner activations x of one shard."""
        x = x if self.in_index is None else x.index_select(-1, self.in_index)
        y, _ = self.linear(x)
        y = y if self.out_index is None else scatter(y, self.out_index, self.hidden_size)
        return y if self.bias is None else y + self.bias

    def load(self, module: str, tensors: Tensors) -> None:
        """Take over the stored tensors of the module."""
        part = tensors
        if not self.is_lowered:
            part = self.layer.role_tensors(module, tensors)[self.role]
        weight = self.layer.as_stored(tensors) if self.is_lowered else part[WEIGHT]
        load(self.linear.weight, weight)
        if SCALE in part:
            load(self.linear.weight_scale, part[SCALE])
        bias = self.bias if self.is_lowered else self.linear.bias
        if bias is not None and BIAS in part:
            bias.data.copy_(part[BIAS])
        for name in (IN_INDEX, OUT_INDEX) if self.is_lowered else ():
            if name in tensors:
                getattr(self, name).copy_(tensors[name])


def scatter(y: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Return [tokens, size] with the columns of y at `index` and zeros elsewhere."""
    return y.new_zeros((*y.shape[:-1], size)).index_copy_(-1, index, y)


def load(parameter: nn.Parameter, tensor: torch.Tensor, *shard: Any) -> None:
    """Hand a tensor of all shards to vLLM's loader, which takes this process's part."""
    parameter.weight_loader(parameter, tensor.contiguous(), *shard)  # type: ignore[operator]


def _index(size: int | None) -> torch.Tensor | None:
    return None if size is None else torch.zeros(size, dtype=torch.int64)
