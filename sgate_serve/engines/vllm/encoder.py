"""Any encoder family in vLLM's pooling runner: classification and embeddings from uneven layers.

vLLM plans memory for one kind of encoder attention, so every layer attends with the head count of
the widest layer; missing heads are zeros after the small projections.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.layers.attention import EncoderOnlyAttention
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.pooler.seqwise import CLSPool, MeanPool
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.bert import _decode_token_type_ids, _encode_token_type_ids
from vllm.model_executor.models.interfaces import SupportsCrossEncoding
from vllm.model_executor.models.interfaces_base import attn_type, default_pooling_type
from vllm.sequence import IntermediateTensors

from sgate_serve.architecture.family import ATTENTION, BLOCKS, MEAN, MLP
from sgate_serve.engines.vllm.attention import UnevenAttention, backend_head_size, rotary
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.heads import SequenceHead
from sgate_serve.engines.vllm.layer import LayerContext
from sgate_serve.engines.vllm.loading import load_weights
from sgate_serve.engines.vllm.mlp import UnevenMLP


class UnevenEncoderLayer(nn.Module):
    """An encoder layer: its blocks, and their norms.

    Norms after each residual sum stay if a block is removed, norms before blocks do not.
    """

    def __init__(self, model: ModelContext, index: int, prefix: str) -> None:
        super().__init__()
        spec, layer = model.spec, model.layer(index)
        self.layer = layer
        self.blocks = nn.ModuleDict()
        if spec.layers[index].num_heads:
            self.blocks[ATTENTION] = encoder_attention(model, layer, prefix)
        if spec.layers[index].mlp_units:
            self.blocks[MLP] = UnevenMLP(model, layer, f"{prefix}.mlp")
        family, there = spec.family, spec.norms(index)
        named = [block for block in BLOCKS if family.norm_name(index, block) in there]
        self.norms = nn.ModuleDict({block: layer_norm(model) for block in named})
        self.post_norms = nn.ModuleDict()
        self.has_norms_on_sums = spec.family.residual == "post"

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        for block in BLOCKS:
            if block in self.blocks:
                read = hidden if self.has_norms_on_sums else self._normed(block, hidden)
                inputs = (positions, read) if block == ATTENTION else (read,)
                hidden = hidden + self.blocks[block](*inputs)
            if self.has_norms_on_sums:
                hidden = self._normed(block, hidden)
        return hidden

    def _normed(self, block: str, hidden: torch.Tensor) -> torch.Tensor:
        # The first block may read what it adds to.
        return self.norms[block](hidden) if block in self.norms else hidden


@support_torch_compile
class UnevenEncoderStack(nn.Module):
    """Embeddings and layers; token types are a high bit of the token ids, as in vLLM's BERT."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        model = ModelContext.of(vllm_config)
        spec = model.spec
        self.model_context, self.first_position = model, spec.first_position
        self.embedding = VocabParallelEmbedding(spec.vocab_size, spec.hidden_size)
        rotates = spec.family.is_rotary
        self.positions = None if rotates else nn.Embedding(spec.num_positions, spec.hidden_size)
        self.types = nn.Embedding(spec.num_types, spec.hidden_size) if spec.num_types else None
        self.embedding_norm = layer_norm(model)
        self.layers = nn.ModuleList(
            UnevenEncoderLayer(model, index, f"{prefix}.layers.{index}")
            for index in range(len(spec.layers))
        )
        self.final_norm = layer_norm(model) if spec.family.final_norm else nn.Identity()

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(input_ids)

    def table_rows(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return which row of the position table each token adds."""
        if self.model_context.spec.family.has_padded_positions:
            positions = positions_without_padding(input_ids == self.first_position - 1, positions)
        return positions + self.first_position

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states [tokens, hidden]."""
        # Decoding also clears the bit in the ids, in place.
        types = _decode_token_type_ids(input_ids)
        hidden = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if self.positions is not None:
            hidden = hidden + self.positions(self.table_rows(input_ids, positions))
        if self.types is not None:
            hidden = hidden + self.types(types)
        hidden = self.embedding_norm(hidden)
        for layer in self.layers:
            hidden = layer(positions, hidden)
        return self.final_norm(hidden)


class UnevenEncoder(nn.Module):
    """The base of both encoders: the stack and the loading of its weights."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.stack = UnevenEncoderStack(vllm_config=vllm_config, prefix=f"{prefix}model")

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.stack.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if token_type_ids is not None and self.stack.types is not None:
            _encode_token_type_ids(input_ids, token_type_ids)
        return self.stack(input_ids, positions, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return load_weights(self, self.stack.model_context, weights)


@attn_type("encoder_only")
@default_pooling_type(seq_pooling_type="CLS")
class UnevenEncoderClassifier(UnevenEncoder, SupportsCrossEncoding):
    """An encoder with its classification head on the first token, or on the mean of all."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        spec = self.stack.model_context.spec
        self.head = SequenceHead(spec, vllm_config)
        pooling = MeanPool() if spec.head.pooling == MEAN else CLSPool()
        # vLLM would otherwise take the pooling of sentence-transformers' files in the folder.
        self.pooler = DispatchPooler.for_seq_cls(
            vllm_config.model_config.pooler_config, pooling=pooling, classifier=self.head
        )


@attn_type("encoder_only")
@default_pooling_type(seq_pooling_type="CLS")
class UnevenEncoderEmbedder(UnevenEncoder):
    """An encoder whose last hidden states are the result; the base model's pooler is ignored."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = DispatchPooler.for_embedding(vllm_config.model_config.pooler_config)


def positions_without_padding(is_padding: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the positions [t] of packed texts in which padding tokens do not count.

    Those have the position -1. `positions` count from 0 in each text.
    """
    before = is_padding.cumsum(0) - is_padding.long()
    # vLLM pads batches with any positions.
    starts = (torch.arange(len(positions), device=positions.device) - positions).clamp(min=0)
    return torch.where(is_padding, -1, positions - before + before[starts])


def encoder_attention(model: ModelContext, layer: LayerContext, prefix: str) -> UnevenAttention:
    """Build the attention block of one layer, its core as wide as that of the widest layer."""
    shapes = [model.layer(index).shape for index in range(len(model.spec.layers))]
    width, window = layer.shape.stored.head_dim, model.spec.windows[layer.index]
    core = EncoderOnlyAttention(
        max(shape.num_heads for shape in shapes),
        backend_head_size(width, model.dtype, attn_type="encoder_only"),
        model.spec.attention_scales[layer.index],
        num_kv_heads=max(shape.num_kv_heads for shape in shapes),
        cache_config=model.cache_config,
        quant_config=layer.quant_config,
        # vLLM counts the token itself.
        per_layer_sliding_window=None if window is None else window + 1,
        prefix=f"{prefix}.attn",
    )
    return UnevenAttention(layer, core, f"{prefix}.attention", rotary=rotary(layer))


def layer_norm(model: ModelContext) -> nn.LayerNorm:
    spec = model.spec
    return nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps, bias=spec.has_norm_bias)
