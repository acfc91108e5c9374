"""The MLP block of decoders and encoders."""

import torch
from torch import nn
from vllm.model_executor.layers.activation import get_act_and_mul_fn, get_act_fn

from sgate_serve.architecture.family import MLP
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.layer import LayerContext
from sgate_serve.engines.vllm.linears import readers, writer


class UnevenMLP(nn.Module):
    """down(act(gate) · up), or down(act(up)) in families without a gate."""

    def __init__(self, model: ModelContext, layer: LayerContext, prefix: str) -> None:
        super().__init__()
        self.readers = readers(layer, MLP, f"{prefix}.gate_up_proj")
        self.writer = writer(layer, MLP, f"{prefix}.down_proj")
        make = get_act_and_mul_fn if model.spec.family.is_gated else get_act_fn
        self.activation = make(model.spec.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.writer(self.activation(self.readers(x)))
