"""The linears of a block: vLLM's own, at the stored widths, with index vectors around them.

Readers (of the residual stream) are split over shards by rows and the writer by columns, as
everywhere in vLLM. On a single shard lowered modules stay as small as they are stored; on several
shards their zeros are restored.
"""

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from sgate_serve.architecture.family import ATTENTION, KEY, QUERY, READERS, VALUE, WRITERS
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.shapes import Lowered
from sgate_serve.engines.vllm.layer import BIAS, SCALE, WEIGHT, LayerContext, Tensors

QKV_SHARDS = {QUERY: "q", KEY: "k", VALUE: "v"}


def readers(layer: LayerContext, block: str, prefix: str) -> "FusedReaders | IndexedReaders":
    """Return the linears that read a block's input: [q | k | v], [gate | up], or others as one."""
    modules = layer.modules(READERS[block])
    if all(layer.lowered(module) == Lowered() for module in modules):
        return FusedReaders(layer, block, prefix)
    return IndexedReaders(layer, block, prefix)


def writer(layer: LayerContext, block: str, prefix: str) -> "Writer":
    """Return the linear that writes a block's output to the residual stream."""
    module = layer.spec.family.linear(layer.index, WRITERS[block])
    kind = Writer if layer.lowered(module) == Lowered() else IndexedWriter
    return kind(layer, block, prefix)


class Readers(nn.Module):
    """The base of all readers: the folder's modules, and the dimensions of each role on a shard."""

    def __init__(self, layer: LayerContext, block: str) -> None:
        super().__init__()
        self.layer = layer
        self.stored_modules = layer.modules(READERS[block])
        self.roles = [role for module in self.stored_modules for role in layer.roles(module)]
        shape = layer.shape
        units = shape.padded.mlp_units // shape.num_shards
        self.sizes = [shape.size(r) if block == ATTENTION else units for r in self.roles]
        self.has_bias = any(layer.has_bias(role) for role in self.roles)

    def parts(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what each role reads: [tokens, its dimensions]."""
        return dict(zip(self.roles, self(x).split(self.sizes, -1), strict=True))


class FusedReaders(Readers):
    """All readers as one matmul; [tokens, hidden] → [tokens, sum(sizes)]."""

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__(layer, block)
        shape, hidden = layer.shape, layer.spec.hidden_size
        settings = {
            "bias": self.has_bias,
            "quant_config": layer.quant_config,
            "prefix": prefix,
        }
        self.is_attention = block == ATTENTION
        self.is_qkv = self.is_attention and QKV_SHARDS.keys() >= {*self.roles}
        if self.is_qkv:
            counts = shape.padded.num_heads, shape.padded.num_kv_heads
            width = shape.stored.head_dim
            # Where keys are values, the values have no rows.
            settings["v_head_size"] = width if VALUE in self.roles else 0
            self.linear = QKVParallelLinear(hidden, width, *counts, **settings)
        else:
            sizes = [size * shape.num_shards for size in self.sizes]
            self.linear = MergedColumnParallelLinear(hidden, sizes, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)[0]
        return y

    def load(self, module: str, tensors: Tensors) -> None:
        """Load the stored tensors of one module."""
        for role, part in self.layer.role_tensors(module, tensors).items():
            shard: str | int = QKV_SHARDS[role] if self.is_qkv else self.roles.index(role)
            if self.is_attention and not self.is_qkv:
                part = {kind: self.layer.replicated(role, own) for kind, own in part.items()}
            load(self.linear.weight, part[WEIGHT], shard)
            if SCALE in part:
                load(self.linear.weight_scale, part[SCALE], shard)
            if self.has_bias:
                load(self.linear.bias, part[BIAS], shard)


class IndexedReaders(Readers):
    """A gather and a matmul for each module, then one scatter that places the rows of all."""

    out_index: torch.Tensor | None

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__(layer, block)
        lowered = [layer.lowered(module) for module in self.stored_modules]
        shapes = [layer.spec.module_shape(layer.index, module) for module in self.stored_modules]
        self.num_rows = [rows for rows, _ in shapes]
        self.linears = nn.ModuleList(
            MergedColumnParallelLinear(
                columns,
                [rows],
                bias=False,
                quant_config=layer.quant_config,
                prefix=f"{prefix}_{number}",
            )
            for number, (rows, columns) in enumerate(shapes)
        )
        for number, each in enumerate(lowered):
            self.register_buffer(f"in_index_{number}", _index(each.columns))
        is_scattered = any(each.rows is not None for each in lowered)
        self.register_buffer(OUT_INDEX, _index(sum(self.num_rows) if is_scattered else None))
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes))) if self.has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for number, linear in enumerate(self.linears):
            index = self._in_index(number)
            parts.append(linear(x if index is None else gather(x, index))[0])
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        y = y if self.out_index is None else scatter(y, self.out_index, sum(self.sizes))
        return y if self.bias is None else y + self.bias

    def load(self, module: str, tensors: Tensors) -> None:
        """Load the stored tensors of one module."""
        number, tensors = self.stored_modules.index(module), self.layer.by_role(module, tensors)
        linear, start = self.linears[number], self._first_dimension(number)
        load(linear.weight, self.layer.as_stored(tensors), 0)
        if SCALE in tensors:
            load(linear.weight_scale, tensors[SCALE], 0)
        if IN_INDEX in tensors:
            self._in_index(number).copy_(tensors[IN_INDEX])
        if self.out_index is not None:
            rows = tensors.get(OUT_INDEX, torch.arange(self.num_rows[number]))
            first = sum(self.num_rows[:number])
            self.out_index[first : first + len(rows)].copy_(rows + start)
        if self.bias is not None and BIAS in tensors:
            self.bias.data[start : start + len(tensors[BIAS])].copy_(tensors[BIAS])

    def _in_index(self, number: int) -> Any:
        return getattr(self, f"in_index_{number}")

    def _first_dimension(self, number: int) -> int:
        """Return the index of a module's first dimension among those of all modules."""
        modules = self.stored_modules[:number]
        before = [role for module in modules for role in self.layer.roles(module)]
        return sum(self.sizes[: len(before)])


class Writer(nn.Module):
    """The linear that writes: [tokens, inner dimensions of one shard] → [tokens, hidden]."""

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__()
        self.layer, self.role = layer, WRITERS[block]
        self.stored_module = layer.spec.family.linear(layer.index, self.role)
        self.has_bias = layer.has_bias(self.role)
        rows, columns = self._shape()
        self.linear = RowParallelLinear(
            columns,
            rows,
            bias=self.has_bias and not isinstance(self, IndexedWriter),
            quant_config=layer.quant_config,
            prefix=prefix,
        )

    def _shape(self) -> tuple[int, int]:
        return self.layer.spec.hidden_size, len(self.layer.shape.columns[self.role])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)[0]
        return y

    def load(self, module: str, tensors: Tensors) -> None:
        """Load the stored tensors of the module."""
        part = self.layer.role_tensors(module, tensors)[self.role]
        self._load_matrix(part[WEIGHT], part)
        if self.has_bias:
            self.linear.bias.data.copy_(part[BIAS])

    def _load_matrix(self, weight: torch.Tensor, tensors: Tensors) -> None:
        load(self.linear.weight, weight)
        if SCALE in tensors:
            load(self.linear.weight_scale, tensors[SCALE])


class IndexedWriter(Writer):
    """A writer with a gather before its matmul and a scatter after it."""

    in_index: torch.Tensor | None
    out_index: torch.Tensor | None

    def __init__(self, layer: LayerContext, block: str, prefix: str) -> None:
        super().__init__(layer, block, prefix)
        lowered, self.hidden_size = layer.lowered(self.stored_module), layer.spec.hidden_size
        self.register_buffer(IN_INDEX, _index(lowered.columns))
        self.register_buffer(OUT_INDEX, _index(lowered.rows))
        self.bias = nn.Parameter(torch.zeros(self.hidden_size)) if self.has_bias else None

    def _shape(self) -> tuple[int, int]:
        return self.layer.spec.module_shape(self.layer.index, self.stored_module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x if self.in_index is None else gather(x, self.in_index))
        y = y if self.out_index is None else scatter(y, self.out_index, self.hidden_size)
        return y if self.bias is None else y + self.bias

    def load(self, module: str, tensors: Tensors) -> None:
        self._load_matrix(self.layer.as_stored(tensors), tensors)
        if self.bias is not None:
            self.bias.data.copy_(tensors[BIAS])
        for name, index in ((IN_INDEX, self.in_index), (OUT_INDEX, self.out_index)):
            if index is not None:
                index.copy_(tensors[name])


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the columns of x [tokens, n] at `index`."""
    # On CPU, index_select is slower for more than a few rows.
    return x[..., index]


def scatter(y: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Return [tokens, size] with the columns of y at `index` and zeros elsewhere."""
    return y.new_zeros((*y.shape[:-1], size)).index_copy_(-1, index, y)


def load(parameter: Any, tensor: torch.Tensor, *shard: Any) -> None:
    """Pass a tensor of all shards to vLLM's loader, which selects this process's part."""
    parameter.weight_loader(parameter, tensor.contiguous(), *shard)


def _index(size: int | None) -> torch.Tensor | None:
    return None if size is None else torch.zeros(size, dtype=torch.int64)
