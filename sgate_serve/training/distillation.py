"""Distillation: the dense model's outputs as a second target beside the labels."""

import copy
from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss


@dataclass(frozen=True)
class Distillation:
    """A frozen copy of the dense model, and how much its outputs count."""

    teacher: nn.Module
    weight: float

    @classmethod
    def of(
        cls, model: nn.Module, weight: float, kept: Container[str] = ()
    ) -> "Distillation | None":
        """Copy `model` as it is now; None where its outputs do not count.

        The parameters `kept`, which no training changes, are shared instead of copied.
        """
        if weight == 0:
            return None
        shared = {id(p): p for name, p in model.named_parameters() if name in kept}
        return cls(copy.deepcopy(model, shared).requires_grad_(False).eval(), weight)

    def loss(self, own: Tensor, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (1 - w) · own + w · divergence from the teacher's outputs on the same inputs."""
        with torch.no_grad():
            given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            wanted = self.teacher(**given).logits
        return (1 - self.weight) * own + self.weight * divergence(wanted, logits)


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return the mean KL(wanted ‖ logits) in nats over rows [..., classes].

    Where there is a single output, a regression's, it is the mean squared difference.
    """
    if logits.shape[-1] == 1:
        return mse_loss(logits.float(), wanted.float())
    student, teacher = (log_softmax(x.float(), dim=-1).flatten(0, -2) for x in (logits, wanted))
    return kl_div(student, teacher, reduction="batchmean", log_target=True)
