"""Norms over the residual stream, which divide by its width before dimensions were removed."""

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

from sgate_serve.engines.vllm.config import ModelContext


def residual_norm(model: ModelContext) -> nn.Module:
    """Build a norm over the stream: LayerNorm, or RMSNorm over the width before removal."""
    spec = model.spec
    if spec.family.norm == "layer":
        return nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
    # n/h · Σx²/n = Σx²/h, so epsilon grows by n/h = gain², and loading multiplies weights by gain.
    return rms_norm(model, spec.hidden_size, spec.norm_eps * spec.norm_gain**2)


def rms_norm(model: ModelContext, size: int, eps: float) -> nn.Module:
    return (GemmaRMSNorm if model.spec.family.norm_offset else RMSNorm)(size, eps=eps)


def add_and_norm(
    norm: nn.Module, hidden: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized stream and the stream itself, hidden + residual."""
    if residual is None:
        return norm(hidden), hidden
    if isinstance(norm, nn.LayerNorm):
        residual = hidden + residual
        return norm(residual), residual
    normed: tuple[torch.Tensor, torch.Tensor] = norm(hidden, residual)
    return normed
