"""What makes training steps cheaper in time and memory, without a change to what they compute."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.phases.head_loss import has_plain_head, loss_without_logits
from sgate_serve.training.phases.trainer import Phase
from sgate_serve.training.precision import LINEARS, frozen_in_bf16


@contextmanager
def lean_steps(model: nn.Module, spec: ModelSpec, phase: Phase) -> Iterator[None]:
    """Within the context, steps neither cast frozen weights nor keep the logits of a batch.

    Distillation needs the logits, so they are kept for it.
    """
    with ExitStack() as stack:
        if phase.bf16:
            stack.enter_context(frozen_in_bf16(model))
        stack.enter_context(_lora_in_one_product(model))
        if phase.distillation is None and has_plain_head(model, spec):
            dtype = torch.bfloat16 if phase.bf16 else torch.float32
            stack.enter_context(loss_without_logits(model, spec, dtype))
        yield


@contextmanager
def _lora_in_one_product(model: nn.Module) -> Iterator[None]:
    """Within the context a LoRA layer adds its update in the product that computes it.

    PEFT casts inputs to fp32, which autocast undoes, and scales and adds the update separately.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, LINEARS)
    ]
    for layer in layers:
        layer.forward = partial(_with_update, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _with_update(layer: Any, inputs: Tensor) -> Tensor:
    """Return base(x) + scaling · B A x of the only adapter of a LoRA layer without dropout."""
    (name,) = layer.active_adapters
    down, up, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    base: Tensor = layer.base_layer(inputs)
    inner = (down(inputs) * scaling).flatten(0, -2)
    return torch.addmm(base.flatten(0, -2), inner, up.weight.T).view_as(base)
