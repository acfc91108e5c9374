"""The phase that trains gate logits on the frozen base under the budget."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.budget import Budget
from sgate_serve.training.masking import masked_linears
from sgate_serve.training.parts import Part, trained_part
from sgate_serve.training.phases import PartlyFrozen, Phase, PhaseTrainer, run
from sgate_serve.training.samples import Data
from sgate_serve.training.sites import BLOCKS
from sgate_serve.training.start import Start
from sgate_serve.training.trained_gates import TrainedGates

# The budget's pressure falls as it is met: a short memory lets the loss speak up again.
BETA2 = 0.95


@dataclass(frozen=True)
class GateTraining:
    """Where gates start and what they are to remove, their rate, and what trains beside."""

    start: Start
    learning_rate: float
    beside: Part


class GatedModel(PartlyFrozen):
    """The frozen base, its gates and their budget; the gates act through `masked_linears`."""

    def __init__(self, model: nn.Module, gates: TrainedGates) -> None:
        super().__init__(model)
        self.gates = gates
        self.budget = Budget()


class GateTrainer(PhaseTrainer):
    """Adds the budget's penalty to the loss, and what is removed to the logs."""

    def __init__(self, *, training: GateTraining, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training = training
        self.add_callback(_DualStep(self))

    @property
    def goals(self) -> Tensor:
        """The fractions [2] to remove by now: a ramp over the first steps."""
        ramp = max(1.0, self.training.start.ramp * self.args.max_steps)
        share: float = min(1.0, (self.state.global_step + 1) / ramp)
        goals = torch.tensor(self.training.start.goals, device=self.args.device)
        return goals * share

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + self.model.budget.penalty(self.model.gates, self.goals)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        gates = self.model.gates
        fractions = {
            "goal": self.goals,
            "expected": gates.removed(),
            "closed": gates.removed_now(),
        }
        removed = {
            f"{name}_{block}": value
            for name, values in fractions.items()
            for block, value in zip(BLOCKS, values.tolist(), strict=True)
        }
        super().log({**logs, **removed}, *args, **kwargs)


class _DualStep(TrainerCallback):
    """Updates the multipliers after each optimiser step."""

    def __init__(self, trainer: GateTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        model.budget.ascend(model.gates, self.trainer.goals)


def train_gates(
    model: nn.Module,
    spec: ModelSpec,
    gates: TrainedGates,
    data: Data,
    training: GateTraining,
    phase: Phase,
) -> tuple[str, ...]:
    """Train `gates` in place on the frozen `model`, the part beside them in it.

    Returns the names of the model's tensors that changed.
    """
    gates.to(next(model.parameters()).device)
    with trained_part(model, spec, training.beside) as names:
        gated = GatedModel(model, gates)
        groups: list[dict[str, Any]] = [
            {"params": list(gates.parameters()), "lr": training.learning_rate},
            {"params": [p for p in model.parameters() if p.requires_grad]},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=phase.learning_rate,
            betas=(0.9, BETA2),
            weight_decay=0.0,
        )
        trainer = GateTrainer(
            model=gated,
            args=phase.constant().arguments(is_ragged=data.is_ragged),
            train_dataset=data.train,
            data_collator=data.collate,
            optimizers=(optimizer, None),
            distillation=phase.distillation,
            training=training,
        )
        with masked_linears(model, gates.sources()):
            run(trainer)
    return names
