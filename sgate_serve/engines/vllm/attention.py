"""Attention with a head count per layer, its heads padded to a width that the backend accepts."""

from functools import cache
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.v1.attention.selector import get_attn_backend

from sgate_serve.architecture.family import ATTENTION, KEY, OUTPUT_GATE, QUERY
from sgate_serve.engines.vllm.layer import LayerContext, spread
from sgate_serve.engines.vllm.linears import readers, writer
from sgate_serve.errors import EngineError

WIDEST_HEAD = 512


class UnevenAttention(nn.Module):
    """Project, rotate, attend, project: `core` is vLLM's attention for the padded heads.

    `query_norm` and `key_norm` normalize single heads, or all at once, `value_norm` single heads;
    `rotary` is vLLM's rotary embedding; all are optional. Without values of their own, keys before
    their norm are values. `core` may have more heads than the layer: the others are zeros. `sinks`
    are those that `core` has. What heads read is multiplied by their output gates, if any.
    """

    def __init__(
        self,
        layer: LayerContext,
        core: Any,
        prefix: str,
        sinks: nn.Parameter | None = None,
        **parts: nn.Module | None,
    ) -> None:
        super().__init__()
        self.register_parameter("sinks", sinks)
        shape = layer.shape
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.stored.head_dim
        self.readers = readers(layer, ATTENTION, f"{prefix}.qkv_proj")
        self.writer = writer(layer, ATTENTION, f"{prefix}.o_proj")
        self.core: Any = core
        self.rotary = parts.get("rotary")
        self.query_norm, self.key_norm = parts.get("query_norm"), parts.get("key_norm")
        self.value_norm, self.value_role = parts.get("value_norm"), shape.stored.value_role
        self.has_joint_norms = layer.spec.family.has_joint_head_norms

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, hidden], to be added to the residual stream."""
        parts = self.readers.parts(x)
        q, k = parts[QUERY], parts[KEY]
        v = parts[self.value_role]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self._normed(self.query_norm, q), self._normed(self.key_norm, k)
        if self.value_norm is not None:
            heads = v.reshape(*v.shape[:-1], -1, self.head_dim)
            v = self.value_norm(heads).view(v.shape)
        if self.rotary is not None:
            q, k = self.rotary(positions, q, k)
        core = self.core
        q = self._padded(q, core.num_heads)
        k, v = (self._padded(each, core.num_kv_heads) for each in (k, v))
        y = core(q, k, v)
        if y.shape[-1] != self.num_heads * self.head_dim:
            y = y.view(-1, core.num_heads, core.head_size)
            y = y[:, : self.num_heads, : self.head_dim].reshape(y.shape[0], -1)
        if OUTPUT_GATE in parts:
            y = y * torch.sigmoid(parts[OUTPUT_GATE])
        return self.writer(y)

    def _normed(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.has_joint_norms:
            return norm(x)
        heads = x.reshape(*x.shape[:-1], -1, self.head_dim)
        return norm(heads).view(x.shape)

    def _padded(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Pad the heads, and their number, with zeros to the sizes of the core."""
        width = self.core.head_size
        if x.shape[-1] == num_heads * width:
            return x
        heads = x.view(x.shape[0], -1, self.head_dim)
        padding = (0, width - self.head_dim, 0, num_heads - heads.shape[1])
        return nn.functional.pad(heads, padding).view(x.shape[0], -1)


class ShardedHeadNorm(nn.Module):
    """RMSNorm over the queries or the keys of all heads, of which each shard has some.

    Shards add up their sums of squares: [tokens, local heads * head_dim] of each. Heads that only
    pad are zeros; a KV head that several shards have counts as often.
    """

    def __init__(self, layer: LayerContext, role: str, eps: float) -> None:
        super().__init__()
        shape, self.eps = layer.shape, eps
        self.sources, num_heads = shape.rows[role], shape.num_heads
        stored, replicas = shape.stored.num_heads, 1
        if role == KEY:
            num_heads, stored = shape.num_kv_heads, shape.stored.num_kv_heads
            replicas = shape.replicas
        width = shape.stored.head_dim
        self.size, self.replicas = stored * width * replicas, replicas
        weight: Any = nn.Parameter(torch.ones(num_heads * width))
        weight.weight_loader = self.load
        self.weight = weight

    def load(self, parameter: nn.Parameter, stored: torch.Tensor) -> None:
        """Load this shard's part of the weight of all heads."""
        start = get_tensor_model_parallel_rank() // self.replicas * len(parameter)
        own = spread(stored, 0, self.sources)[start : start + len(parameter)]
        parameter.data.copy_(own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        squares = tensor_model_parallel_all_reduce(wide.pow(2).sum(-1, keepdim=True))
        return (wide * torch.rsqrt(squares / self.size + self.eps) * self.weight).to(x.dtype)


def head_sinks(layer: LayerContext) -> nn.Parameter | None:
    """Return a logit for each head of this shard, of which each takes a share of the attention.

    Heads that only pad have one of 0: their outputs are not read.
    """
    if layer.spec.sinks(layer.index) is None:
        return None
    shape, width = layer.shape, layer.shape.stored.head_dim
    sinks: Any = nn.Parameter(torch.zeros(shape.num_heads), requires_grad=False)

    def load(parameter: nn.Parameter, stored: torch.Tensor) -> None:
        start = get_tensor_model_parallel_rank() * len(parameter)
        whole = spread(stored, 0, shape.rows[QUERY][::width] // width)
        parameter.data.copy_(whole[start : start + len(parameter)])

    sinks.weight_loader = load
    return sinks


def rotary(layer: LayerContext) -> nn.Module | None:
    """Build the rotation of a layer's queries and keys; None if it does not rotate."""
    spec, rope = layer.spec, layer.spec.ropes[layer.index]
    if rope is None:
        return None
    made: nn.Module = get_rope(
        layer.shape.stored.head_dim,
        max_position=spec.num_positions,
        rope_parameters=dict(rope.settings),
    )
    return made


@cache
def backend_head_size(head_dim: int, dtype: torch.dtype, **options: Any) -> int:
    """Return the smallest head size from `head_dim` up that this platform's attention supports.

    Raises EngineError if it supports none.
    """
    for size in range(head_dim, WIDEST_HEAD + 1):
        try:
            backend = get_attn_backend(size, dtype, None, **options)
        except ValueError:  # raised if no backend supports the size
            continue
        if backend.supports_head_size(size):
            return size
    raise EngineError(f"vLLM has no attention here for heads of {head_dim} dimensions")
