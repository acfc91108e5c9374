"""The modules that replace stock ones: indexed linears, narrow norms, removed blocks."""

from typing import Any

import torch
from torch import nn

from sgate_serve.architecture.shapes import Lowered


class IndexedLinear(nn.Module):
    """A linear that stores only some rows and columns of its matrix; the others are zero.

    `in_index` places the stored columns among the inputs, `out_index` the stored rows among the
    outputs; the bias has a value for every output.
    """

    in_index: torch.Tensor | None
    out_index: torch.Tensor | None

    def __init__(self, shape: tuple[int, int], lowered: Lowered, size: int, bias: bool) -> None:
        super().__init__()
        self.out_features = size
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        for name, count in (("in_index", lowered.columns), ("out_index", lowered.rows)):
            index = None if count is None else torch.zeros(count, dtype=torch.int64)
            self.register_buffer(name, index)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x if self.in_index is None else x.index_select(-1, self.in_index))
        if self.out_index is not None:
            y = y.new_zeros((*y.shape[:-1], self.out_features)).index_copy_(-1, self.out_index, y)
        return y if self.bias is None else y + self.bias


class TransposedIndexedLinear(IndexedLinear):
    """An indexed linear whose matrix is stored as (in, out), like GPT-2's Conv1D."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class NarrowRMSNorm(nn.Module):
    """RMSNorm over the remaining residual dimensions that divides by the width before removal.

    The removed dimensions were always zero, so the sum of squares is the same. It computes in fp32,
    like the stock norms.
    """

    def __init__(self, size: int, norm_size: int, eps: float, offset: float) -> None:
        super().__init__()
        self.norm_size, self.eps, self.offset = norm_size, eps, offset
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        variance = wide.pow(2).sum(-1, keepdim=True) / self.norm_size
        normed = wide * torch.rsqrt(variance + self.eps)
        if self.offset:
            return (normed * (self.offset + self.weight.to(torch.float32))).to(x.dtype)
        return self.weight * normed.to(x.dtype)


class SkippedPair(nn.Module):
    """Replaces a removed block that returns something besides: zeros and None, and no cache."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class Skipped(nn.Module):
    """Replaces any other removed block, or the projection after one: it returns zeros."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.zeros_like(hidden_states)
