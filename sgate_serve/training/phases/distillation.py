"""Distillation: the dense model's outputs as a second target, in addition to the labels."""

import copy
from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss


@dataclass(frozen=True)
class Distillation:
    """A frozen copy of the dense model, and the weight of its outputs in the loss."""

    teacher: nn.Module
    weight: float

    @classmethod
    def of(
        cls, model: nn.Module, weight: float, untouched: Container[str] = ()
    ) -> "Distillation | None":
        """Copy `model` in its current state; None if `weight` is 0.

        The parameters in `untouched`, which training does not change, are shared, not copied.
        """
        if weight == 0:
            return None
        shared = {id(p): p for name, p in model.named_parameters() if name in untouched}
        return cls(copy.deepcopy(model, shared).requires_grad_(False).eval(), weight)

    def loss(self, own: Tensor, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (1 - w) · own + w · divergence from the teacher's outputs on the same inputs."""
        with torch.no_grad():
            given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            wanted = self.teacher(**given).logits
        return (1 - self.weight) * own + self.weight * divergence(wanted, logits)


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return the mean KL(wanted ‖ logits) in nats over rows [..., classes].

    For a single output, as of a regression, it is the mean squared difference instead.
    """
    if logits.shape[-1] == 1:
        return mse_loss(logits.float(), wanted.float())
    student, teacher = (log_softmax(x.float(), dim=-1).flatten(0, -2) for x in (logits, wanted))
    return kl_div(student, teacher, reduction="batchmean", log_target=True)
