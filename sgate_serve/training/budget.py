"""The budget that closes gates: a constraint on physical weights, per kind of block.

`removed` counts the weights whose gates would be 0 under the training noise. Its pressure flows
through a probability that also reaches gates far from closing (the authors' is wider than their
gate: with that one as the measure, a requested 30% read 29.9% while 26.5% was removed).
"""

import torch
from torch import Tensor, nn

from sgate_serve.training.sites import BLOCKS
from sgate_serve.training.trained_gates import TrainedGates

# Quadratic weight and dual step of the augmented Lagrangian, in nats per fraction of a block kind.
QUADRATIC = 10.0
# A larger dual step winds up while gates are on their way to closing, and overshoots by far.
DUAL_STEP = 0.05


class Budget(nn.Module):
    """Augmented Lagrangian that drives the removed fraction of each kind of block to a goal."""

    multipliers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("multipliers", torch.zeros(len(BLOCKS)))

    def penalty(self, gates: TrainedGates, goals: Tensor) -> Tensor:
        """Return the term for the loss; its gradient closes gates while `goals` [2] are not met."""
        pressure = self.multipliers + QUADRATIC * self._shortfall(gates, goals)
        return -(pressure * gates.pressed()).sum()

    @torch.no_grad()
    def ascend(self, gates: TrainedGates, goals: Tensor) -> None:
        """Raise the multipliers where too little is removed, lower them where too much is."""
        self.multipliers += DUAL_STEP * self._shortfall(gates, goals)

    def _shortfall(self, gates: TrainedGates, goals: Tensor) -> Tensor:
        return goals - gates.removed().detach()
