"""A recurrent block in vLLM: heads that carry a state from token to token, in numbers per layer.

vLLM plans and copies the states as those of a Mamba layer, one set for each request, and says for
each step which tokens belong to which. The rule is our own (`delta_rule`), in fp32, on every
platform: vLLM's kernels have one width for all layers, and on CPU one type.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from sgate_serve.architecture.family import (
    ATTENTION,
    DECAY,
    KEY,
    OUTPUT_GATE,
    QUERY,
    RENEWAL,
    VALUE,
)
from sgate_serve.architecture.recurrent_layers import channel_spans
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.delta_rule import convolved, delta_rule, unit
from sgate_serve.engines.vllm.layer import LayerContext, spread
from sgate_serve.engines.vllm.linears import readers, writer

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
CONVOLVED = (QUERY, KEY, VALUE)
STATE_TYPES = (torch.float32, torch.float32)
OP = "vllm::sgate_recurrence"


class UnevenRecurrence(nn.Module, MambaBase):
    """Project, convolve, carry a state, normalize, gate, project.

    Besides linears it has `convolution` [channels, 1, taps], `decay` and `step` [heads], and `norm`
    [value width]; channels are the rows of query, key and value.
    """

    def __init__(self, model: ModelContext, layer: LayerContext, prefix: str) -> None:
        super().__init__()
        self.layer, shape = layer, layer.shape
        self.readers = readers(layer, ATTENTION, f"{prefix}.in_proj")
        self.writer = writer(layer, ATTENTION, f"{prefix}.out_proj")
        self.sizes = [shape.size(role) for role in CONVOLVED]
        self.value_width, self.key_width = shape.stored.head_dim, shape.stored.key_dim
        self.values_per_key = shape.num_heads // shape.num_kv_heads
        self.scale = model.spec.attention_scales[layer.index]
        self.activation = ACT2FN[model.spec.activation]
        self.eps = model.spec.norm_eps
        heads = layer.shape.num_heads
        self.convolution = parameter((sum(self.sizes), 1, model.spec.kernel), self._load_channels)
        # Exponents of exponents are fp32, whatever the type of the model is.
        self.decay = parameter((heads,), self._load_heads, torch.float32)
        self.step = parameter((heads,), self._load_heads, torch.float32)
        self.norm = parameter((self.value_width,))
        self.kv_cache = (torch.empty(0), torch.empty(0))
        self.name, compilation = f"{prefix}.state", model.vllm_config.compilation_config
        compilation.static_forward_context[self.name] = self
        # Where attention splits a CUDA graph, this does too.
        if compilation.splitting_ops and OP not in compilation.splitting_ops:
            compilation.splitting_ops.append(OP)

    def _load_channels(self, parameter: nn.Parameter, stored: torch.Tensor) -> None:
        spans = channel_spans(self.layer.spec.layers[self.layer.index])
        own = [self._of_shard(role, stored[spans[role]]) for role in CONVOLVED]
        parameter.data.copy_(torch.cat(own))

    def _load_heads(self, parameter: nn.Parameter, stored: torch.Tensor) -> None:
        parameter.data.copy_(self._of_shard(DECAY, stored))

    def _of_shard(self, role: str, stored: torch.Tensor) -> torch.Tensor:
        """Return this shard's part of what is stored for each dimension of a role."""
        shape = self.layer.shape
        whole = self.layer.replicated(role, spread(stored, 0, shape.rows[role]))
        size = shape.size(role)
        return whole[get_tensor_model_parallel_rank() * size :][:size]

    def stored_parameters(self) -> dict[str, Any]:
        """Return the parameters of this block besides its linears, by their names in the folder."""
        family = self.layer.spec.family
        own, name = family.recurrence, family.layer_name(self.layer.index)
        assert own is not None, "only such a family has recurrent layers"
        return {
            f"{name}.{own.convolution}.weight": self.convolution,
            f"{name}.{own.decay}": self.decay,
            f"{name}.{own.step}": self.step,
            f"{name}.{own.norm}.weight": self.norm,
        }

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, hidden], to be added to the residual stream."""
        parts = self.readers.parts(x)
        mixed = torch.cat([parts[role] for role in CONVOLVED], -1)
        read = torch.zeros_like(parts[VALUE])
        torch.ops.vllm.sgate_recurrence(mixed, parts[RENEWAL], parts[DECAY], read, self.name)
        heads = read.view(len(read), -1, self.value_width).to(torch.float32)
        root = torch.rsqrt(heads.square().mean(-1, keepdim=True) + self.eps)
        normed = self.norm * (heads * root).to(x.dtype)
        gate = parts[OUTPUT_GATE].to(torch.float32)
        gated = normed.view(len(read), -1) * nn.functional.silu(gate)
        return self.writer(gated.to(x.dtype))

    def recur(self, metadata: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the heads read for the tokens of a step [tokens, heads * width].

        `inputs` are the rows before the convolution, renewals and decays. Requests that decode come
        first, one token each.
        """
        found, start = [], metadata.num_decodes
        if start:
            rows = metadata.state_indices_tensor_d[:, 0]
            tokens = (each[:start].unsqueeze(1) for each in inputs)
            found.append(self._advance(rows, True, *tokens).squeeze(1))
        if metadata.num_prefills:
            ends = (metadata.query_start_loc_p[1:] + start).tolist()
            goes_on = metadata.has_initial_states_p.tolist()
            for row, end, has_past in zip(
                metadata.state_indices_tensor_p.split(1), ends, goes_on, strict=True
            ):
                tokens = (each[start:end].unsqueeze(0) for each in inputs)
                found.append(self._advance(row, has_past, *tokens).squeeze(0))
                start = end
        return torch.cat(found)

    def _advance(
        self,
        rows: torch.Tensor,
        has_past: bool,
        mixed: torch.Tensor,
        renewal: torch.Tensor,
        decay: torch.Tensor,
    ) -> torch.Tensor:
        """Take as many tokens of each of some requests, [n, t, ...], whose states are at `rows`."""
        states, pasts = self.kv_cache
        state, past = states[rows], pasts[rows]
        if not has_past:
            state, past = torch.zeros_like(state), torch.zeros_like(past)
        weight = self.convolution.squeeze(1).to(torch.float32)
        sums, pasts[rows] = convolved(past, mixed.to(torch.float32), weight)
        query, key, value = (
            part.unflatten(-1, (-1, width)).transpose(1, 2)
            for part, width in zip(
                self.activation(sums).split(self.sizes, -1),
                (self.key_width, self.key_width, self.value_width),
                strict=True,
            )
        )
        query, key = (
            unit(each).repeat_interleave(self.values_per_key, dim=1) for each in (query, key)
        )
        step = nn.functional.softplus(decay.to(torch.float32) + self.step)
        kept, renewed = -self.decay.exp() * step, renewal.to(torch.float32).sigmoid()
        read, states[rows] = delta_rule(
            state, query * self.scale, key, value, kept.transpose(1, 2), renewed.transpose(1, 2)
        )
        return read.transpose(1, 2).flatten(2)

    # What vLLM asks of a layer with states.

    def get_state_shape(self) -> Shapes:
        return state_shapes(self.layer)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return STATE_TYPES

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """The kind whose metadata say no more than which states and tokens are whose."""
        return MambaAttentionBackendEnum.MAMBA1


def parameter(
    size: tuple[int, ...], load: Callable[..., None] | None = None, dtype: Any = None
) -> nn.Parameter:
    made: Any = nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False)
    if load is not None:
        made.weight_loader = load
    return made


def state_shapes(layer: LayerContext) -> Shapes:
    """Return the shapes of what a layer keeps of a request: [heads, keys, values], and the last
    tokens before the convolution.
    """
    shape, stored = layer.shape, layer.shape.stored
    channels = sum(shape.size(role) for role in CONVOLVED)
    # vLLM has no empty states.
    past = max(layer.spec.kernel - 1, 1)
    return (shape.num_heads, stored.key_dim, stored.head_dim), (past, channels)


def largest_state(spec: ModelSpec, num_shards: int) -> Shapes:
    """Return the shapes of the layer that keeps most on a shard; of nothing if no layer does."""
    layers = (
        LayerContext(spec, index, None, num_shards)
        for index, layer in enumerate(spec.layers)
        if layer.is_recurrent and layer.num_heads
    )
    return max(map(state_shapes, layers), key=num_state_values, default=((0,), (0,)))


def num_state_values(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes)


def recurrence(
    mixed: torch.Tensor, renewal: torch.Tensor, decay: torch.Tensor, read: torch.Tensor, name: str
) -> None:
    """Fill `read` with what the heads of a layer read; vLLM pads steps, so it may be longer."""
    context = get_forward_context()
    if context.attn_metadata is None:
        return  # vLLM measures how much memory is left for states
    layer = context.no_compile_layers[name]
    found = layer.recur(context.attn_metadata[name], mixed, renewal, decay)
    read[: len(found)] = found


direct_register_custom_op(op_name="sgate_recurrence", op_func=recurrence, mutates_args=["read"])
