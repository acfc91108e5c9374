"""Any decoder family in vLLM, built from its ModelSpec: uneven widths, missing blocks, indices.

One layer class serves all families, which differ in data only: the places of norms, the linears,
windows and soft caps. Tensor and pipeline parallelism, torch.compile and quantized linears are
vLLM's own.
"""

from collections.abc import Iterable
from functools import reduce
from itertools import islice
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.pooler.seqwise import LastPool
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
)
from vllm.sequence import IntermediateTensors

from sgate_serve.architecture.family import ATTENTION, KEY, MLP, QUERY
from sgate_serve.engines.vllm.attention import (
    ShardedHeadNorm,
    UnevenAttention,
    backend_head_size,
    head_sinks,
    rotary,
)
from sgate_serve.engines.vllm.branch import UnevenBranch
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.heads import SequenceHead
from sgate_serve.engines.vllm.layer import LayerContext
from sgate_serve.engines.vllm.loading import load_weights
from sgate_serve.engines.vllm.mixture import UnevenMixture
from sgate_serve.engines.vllm.mlp import UnevenMLP
from sgate_serve.engines.vllm.norms import add_and_norm, residual_norm, rms_norm
from sgate_serve.engines.vllm.recurrence import UnevenRecurrence

Stream = tuple[torch.Tensor, torch.Tensor | None]
DYNAMIC = {
    "input_ids": 0,
    "positions": 0,
    "intermediate_tensors": 0,
    "inputs_embeds": 0,
}


class UnevenDecoderLayer(nn.Module):
    """A decoder layer; either block may be missing, together with its norms.

    The residual stream is carried as (delta, residual), and the norm before the next block adds the
    two in one pass. Before the first block of a model the residual is None.
    """

    def __init__(self, model: ModelContext, index: int, prefix: str) -> None:
        super().__init__()
        layer, shape = model.layer(index), model.spec.layers[index]
        self.layer, self.factor = layer, model.spec.residual_multiplier
        self.is_parallel = model.spec.has_parallel_blocks
        self.blocks = nn.ModuleDict()
        self.norms, self.post_norms = nn.ModuleDict(), nn.ModuleDict()
        if shape.num_heads:
            make = UnevenRecurrence if shape.is_recurrent else decoder_attention
            self.blocks[ATTENTION] = make(model, layer, prefix)
        if shape.mlp_units:
            self.blocks[MLP] = decoder_mlp(model, layer, f"{prefix}.mlp")
        for block in self.blocks:
            if block in model.spec.family.norms:
                self.norms[block] = residual_norm(model)
            if block in model.spec.family.post_norms:
                self.post_norms[block] = residual_norm(model)
        has_scale = model.spec.family.layer_scale is not None
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False) if has_scale else None

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> Stream:
        if self.is_parallel:
            return self._parallel(positions, hidden, residual)
        for name in self.blocks:
            if name in self.norms:
                hidden, residual = add_and_norm(self.norms[name], hidden, residual)
            else:
                residual = hidden = hidden if residual is None else hidden + residual
            hidden = self._added(name, positions, hidden, residual)
        if self.scale is None:
            return hidden, residual
        # A number per layer multiplies the whole stream.
        return (hidden if residual is None else hidden + residual) * self.scale, None

    def _parallel(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> Stream:
        """Return the sum of both blocks, and the stream that both read."""
        deltas = []
        for name in self.blocks:
            # The first norm adds; from then on the stream is whole.
            normed, hidden = add_and_norm(self.norms[name], hidden, residual)
            residual = None
            deltas.append(self._added(name, positions, normed, hidden))
        return (reduce(torch.add, deltas), hidden) if deltas else (hidden, residual)

    def _added(
        self, name: str, positions: torch.Tensor, normed: torch.Tensor, stream: torch.Tensor
    ) -> torch.Tensor:
        """Return what a block adds to the stream."""
        block = self.blocks[name]
        if name == ATTENTION:
            y: torch.Tensor = block(positions, normed)
        else:
            y = block(normed, stream) if isinstance(block, UnevenBranch) else block(normed)
        y = self.post_norms[name](y) if name in self.post_norms else y
        return y if self.factor == 1 else y * self.factor


@support_torch_compile(dynamic_arg_dims=DYNAMIC)
class UnevenDecoderStack(nn.Module):
    """Embeddings, the layers of this pipeline stage, and the final norm on the last stage."""

    embedding_scale: torch.Tensor | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        model = ModelContext.of(vllm_config)
        spec = model.spec
        self.model_context = model
        group = get_pp_group()
        self.embedding: nn.Module = PPMissingLayer()
        if group.is_first_rank or (spec.tied_head and group.is_last_rank):
            self.embedding = VocabParallelEmbedding(spec.vocab_size, spec.hidden_size)
        self.positions: nn.Module | None = None
        if group.is_first_rank and not spec.family.is_rotary:
            self.positions = nn.Embedding(spec.num_positions, spec.hidden_size)
        scale = spec.embedding_scale
        # In the model's dtype: transformers rounds Gemma's scale, too.
        self.register_buffer(
            "embedding_scale", None if scale is None else torch.tensor(scale), False
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            len(spec.layers),
            lambda prefix: UnevenDecoderLayer(model, int(prefix.rpartition(".")[2]), prefix),
            prefix=f"{prefix}.layers",
        )
        self.final_norm = residual_norm(model) if group.is_last_rank else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], spec.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Return [tokens, hidden]."""
        embedded = self.embedding(input_ids)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        hidden, residual = self._start(input_ids, positions, intermediate_tensors, inputs_embeds)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden, residual = layer(positions, hidden, residual)
        if not get_pp_group().is_last_rank:
            # A stage without any block has no residual; x + 0 is x.
            residual = torch.zeros_like(hidden) if residual is None else residual
            return IntermediateTensors({"hidden_states": hidden, "residual": residual})
        return add_and_norm(self.final_norm, hidden, residual)[0]

    def _start(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None,
    ) -> Stream:
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            return intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return (hidden if self.positions is None else hidden + self.positions(positions)), None


class UnevenDecoder(nn.Module, SupportsPP):
    """The base of all decoders: the stack and the loading of its weights."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.stack = UnevenDecoderStack(vllm_config=vllm_config, prefix=f"{prefix}model")
        self.make_empty_intermediate_tensors = self.stack.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.stack.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.stack(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return load_weights(self, self.stack.model_context, weights)


class UnevenForCausalLM(UnevenDecoder):
    """A causal language model of any decoder family."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        spec = self.stack.model_context.spec
        self.head: Any = PPMissingLayer()
        if get_pp_group().is_last_rank:
            has_bias = spec.family.head in spec.extra_biases
            self.head = ParallelLMHead(spec.vocab_size, spec.hidden_size, bias=has_bias)
            if spec.tied_head:
                self.head = self.head.tie_weights(self.stack.embedding)
        self.logits_processor = LogitsProcessor(
            spec.vocab_size, scale=1 / spec.logit_divisor, soft_cap=spec.logit_softcap
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return [tokens, vocab] on the first shard, None on the others."""
        return self.logits_processor(self.head, hidden_states, self.head.bias)


@default_pooling_type(seq_pooling_type="LAST")
class UnevenDecoderClassifier(UnevenDecoder):
    """A decoder with a classification head on the last token."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.head = SequenceHead(self.stack.model_context.spec, vllm_config)
        # vLLM would otherwise take the pooling of sentence-transformers' files in the folder.
        self.pooler = DispatchPooler.for_seq_cls(
            vllm_config.model_config.pooler_config, pooling=LastPool(), classifier=self.head
        )


@default_pooling_type(seq_pooling_type="LAST")
class UnevenDecoderEmbedder(UnevenDecoder):
    """A decoder whose last hidden states are the result."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = DispatchPooler.for_embedding(vllm_config.model_config.pooler_config)


def decoder_mlp(model: ModelContext, layer: LayerContext, prefix: str) -> nn.Module:
    """Build the MLP of one layer, or its experts."""
    kind: type[nn.Module] = UnevenMLP
    if model.spec.layers[layer.index].experts:
        has_branch = model.spec.family.branch(layer.index) is not None
        kind = UnevenBranch if has_branch else UnevenMixture
    return kind(model, layer, prefix)


def decoder_attention(model: ModelContext, layer: LayerContext, prefix: str) -> UnevenAttention:
    """Build the attention block of one layer."""
    spec, width, sinks = model.spec, layer.shape.stored.head_dim, head_sinks(layer)
    core = Attention(
        layer.shape.num_heads,
        backend_head_size(width, model.dtype, has_sink=sinks is not None),
        spec.attention_scales[layer.index],
        num_kv_heads=layer.shape.num_kv_heads,
        cache_config=model.cache_config,
        quant_config=layer.quant_config,
        logits_soft_cap=spec.attention_softcap,
        per_layer_sliding_window=spec.windows[layer.index],
        prefix=f"{prefix}.attn",
        **({} if sinks is None else {"sinks": sinks}),
    )
    parts: dict[str, nn.Module | None] = {"rotary": rotary(layer)}
    sizes = spec.head_norm_sizes(layer.index).values()
    for name, role, size in zip(("query_norm", "key_norm"), (QUERY, KEY), sizes, strict=False):
        if spec.family.has_joint_head_norms and model.num_shards > 1:
            parts[name] = ShardedHeadNorm(layer, role, spec.norm_eps)
        else:
            parts[name] = rms_norm(model, size, spec.norm_eps)
    if spec.family.has_value_norm:
        parts["value_norm"] = RMSNorm(width, eps=spec.norm_eps, has_weight=False)
    return UnevenAttention(layer, core, f"{prefix}.self_attn", sinks, **parts)
