"""The pruning budget: a constraint on the weights that gates remove, for each kind of block.

The constraint is measured by the weights whose gates would be 0 under the training noise. Its
gradient flows through a wider distribution, which also reaches gates that are far from closing.
(The wider one is the authors'. Used as the measure too, it read 29.9% for a target of 30% while
26.5% was removed.)
"""

import torch
from torch import Tensor, nn

from sgate_serve.training.gates.trained_gates import TrainedGates
from sgate_serve.training.masks.prunable_sites import BLOCK_KINDS

# Quadratic weight and dual step of the augmented Lagrangian, in nats per fraction removed.
QUADRATIC = 10.0
# With a larger dual step the multiplier grows while gates are still moving, and overshoots by far.
DUAL_STEP = 0.05


class Budget(nn.Module):
    """Augmented Lagrangian that drives the removed fraction of each kind of block to its goal."""

    multipliers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("multipliers", torch.zeros(len(BLOCK_KINDS)))

    def penalty(self, gates: TrainedGates, goals: Tensor) -> Tensor:
        """Return the penalty to add to the loss; it closes gates while `goals` [2] are not met."""
        pressure = self.multipliers + QUADRATIC * self._shortfall(gates, goals)
        return -(pressure * gates.differentiable_removed()).sum()

    @torch.no_grad()
    def ascend(self, gates: TrainedGates, goals: Tensor) -> None:
        """Raise the multipliers where too little is removed, and lower them where too much is."""
        self.multipliers += DUAL_STEP * self._shortfall(gates, goals)

    def _shortfall(self, gates: TrainedGates, goals: Tensor) -> Tensor:
        return goals - gates.removed().detach()
