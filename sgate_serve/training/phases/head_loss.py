"""The loss of a causal LM straight from its last hidden states, a few rows of logits at a time.

The logits of a whole batch are the largest tensor of a step: vocabulary times tokens, in fp32, with
their probabilities and gradients beside them. Computed in chunks they stay in the CPU's cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.architecture.spec import ModelSpec

IGNORED = -100
# Rows of logits at a time. On a GPU small products would leave most of it idle.
CPU_ROWS, GPU_ROWS = 128, 4096


def has_plain_head(model: nn.Module, spec: ModelSpec) -> bool:
    """Say whether logits are a frozen linear map of the last hidden states, and nothing more."""
    if spec.task != CAUSAL_LM or spec.logit_softcap is not None or spec.logit_divisor != 1:
        return False
    head = model.get_submodule(spec.family.head)
    is_hooked = bool(head._forward_hooks or head._forward_pre_hooks)
    is_frozen = not any(parameter.requires_grad for parameter in head.parameters())
    return type(head) is nn.Linear and is_frozen and not is_hooked


@contextmanager
def loss_without_logits(model: Any, spec: ModelSpec, dtype: torch.dtype) -> Iterator[None]:
    """Within the context, `model` computes its loss in chunks; its `logits` are hidden states.

    The head multiplies in `dtype`; losses are fp32. `has_plain_head` must hold.
    """
    head = model.get_submodule(spec.family.head)
    weight, bias = head.weight.detach().to(dtype), head.bias
    own = model.__dict__.get("_loss_function")
    head.forward = _identity
    model.loss_function = partial(_mean_loss, weight=weight, bias=bias)
    try:
        yield
    finally:
        del head.forward
        if own is None:
            del model._loss_function
        else:
            model.loss_function = own


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def _mean_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int | None = None,
    *,
    weight: Tensor,
    bias: Tensor | None,
    **others: Any,
) -> Tensor:
    """Return the mean nats of the labels, each of which the position before it predicts.

    `logits` are hidden states [batch, tokens, hidden].
    """
    wanted = pad(labels, (0, 1), value=IGNORED)[..., 1:].flatten()
    is_label = wanted != IGNORED
    hidden = logits.flatten(0, -2)[is_label]
    loss: Tensor = _ChunkedLoss.apply(hidden, weight, bias, wanted[is_label])  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The mean cross entropy of rows, whose gradient is computed along with it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        rows = GPU_ROWS if hidden.is_cuda else CPU_ROWS
        total, gradients = hidden.new_zeros((), dtype=torch.float32), []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), rows):
                part = hidden[start : start + rows].to(weight.dtype)
                wanted = labels[start : start + rows]
                logits = torch.mm(part, weight.T)
                if bias is not None:
                    logits = logits + bias
                logs = torch.log_softmax(logits, dim=1, dtype=torch.float32)
                at = wanted[:, None]
                total -= logs.gather(1, at).sum()
                # The gradient of the nats with respect to the logits is softmax - one-hot.
                slopes = logs.exp_().scatter_add_(1, at, logs.new_full(at.shape, -1.0))
                gradients.append(torch.mm(slopes.to(weight.dtype), weight))
        ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        ctx.count = len(labels)
        return total / len(labels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * (gradient / ctx.count), None, None, None
