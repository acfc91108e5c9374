"""The classification head: one linear, or two with an activation between them."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from sgate_serve.architecture.spec import ModelSpec


class SequenceHead(nn.Module):
    """Logits [sequences, labels] from pooled states [sequences, hidden].

    Modules have the names of the folder, with underscores for dots.
    """

    def __init__(self, spec: ModelSpec, vllm_config: Any) -> None:
        super().__init__()
        dtype, dense = vllm_config.model_config.head_dtype, spec.head.dense
        shapes = spec.tensor_shapes()
        self.activation: Any = None if dense is None else ACT2FN[dense.activation]
        self.parts = nn.ModuleDict()
        for name in (name for name in spec.head.tensors if name.endswith(".weight")):
            module, (rows, *columns) = name.removesuffix(".weight"), shapes[name]
            has_bias = f"{module}.bias" in spec.head.tensors
            part: nn.Module = nn.LayerNorm(rows, eps=spec.norm_eps, bias=has_bias, dtype=dtype)
            if columns:
                part = nn.Linear(columns[0], rows, bias=has_bias, dtype=dtype)
            self.parts[key_of(module)] = part

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        first, *rest = self.parts.values()
        y: torch.Tensor = first(pooled)
        y = self.activation(y) if rest else y
        for part in rest:
            y = part(y)
        return y


def key_of(module: str) -> str:
    """Return a module's name in a form that torch accepts for a child module."""
    return module.replace(".", "_")
