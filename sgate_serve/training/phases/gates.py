"""The gate phase: trains gate logits on the frozen base, under the pruning budget."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.gates.budget import Budget
from sgate_serve.training.gates.initialization import GateInitialization
from sgate_serve.training.gates.trained_gates import TrainedGates
from sgate_serve.training.masks.masking import masked_linears
from sgate_serve.training.masks.prunable_sites import BLOCK_KINDS
from sgate_serve.training.phases.lean_steps import lean_steps
from sgate_serve.training.phases.trainer import PartlyFrozen, Phase, PhaseTrainer, run
from sgate_serve.training.phases.tuning import Tuning, tuned
from sgate_serve.training.tasks.training_data import TrainingData

# The budget's pressure falls as its goals are met; Adam must forget the earlier, larger gradients
# for the loss to matter again.
BETA2 = 0.95


@dataclass(frozen=True)
class GateTraining:
    """Initialization and goals of the gates, their learning rate, and what is tuned with them."""

    initial: GateInitialization
    learning_rate: float
    tuning: Tuning


class GatedModel(PartlyFrozen):
    """The frozen base, its gates and their budget; `masked_linears` applies the gates."""

    def __init__(self, model: nn.Module, gates: TrainedGates) -> None:
        super().__init__(model)
        self.gates = gates
        self.budget = Budget()


class GateTrainer(PhaseTrainer):
    """Adds the budget's penalty to the loss, and the removed fractions to the log."""

    def __init__(self, *, training: GateTraining, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training = training
        self.add_callback(_DualStep(self))

    @property
    def goals(self) -> Tensor:
        """The fractions [2] to remove by the current step, which rise over the ramp."""
        ramp = max(1.0, self.training.initial.ramp * self.args.max_steps)
        share: float = min(1.0, (self.state.global_step + 1) / ramp)
        goals = torch.tensor(self.training.initial.goals, device=self.args.device)
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
            for block, value in zip(BLOCK_KINDS, values.tolist(), strict=True)
        }
        super().log({**logs, **removed}, *args, **kwargs)


class _DualStep(TrainerCallback):
    """Updates the multipliers after each optimizer step."""

    def __init__(self, trainer: GateTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        model.budget.ascend(model.gates, self.trainer.goals)


def train_gates(
    model: nn.Module,
    spec: ModelSpec,
    gates: TrainedGates,
    data: TrainingData,
    training: GateTraining,
    phase: Phase,
) -> tuple[str, ...]:
    """Train `gates` in place on `model`, of which only `training.tuning` changes.

    Returns the names of the tensors of `model` that changed.
    """
    gates.to(next(model.parameters()).device)
    with tuned(model, spec, training.tuning) as names:
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
        with masked_linears(model, gates.sources()), lean_steps(model, spec, phase):
            run(trainer, phase.name)
    return names
