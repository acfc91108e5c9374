"""The phase that trains gate logits on the frozen base under the budget."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from sgate_serve.spec import ModelSpec
from sgate_serve.training.budget import Budget
from sgate_serve.training.masking import masked_linears
from sgate_serve.training.parts import Part, trained_part
from sgate_serve.training.phases import PartlyFrozen, Phase, PhaseTrainer, run
from sgate_serve.training.samples import Data
from sgate_serve.training.trained_gates import TrainedGates

RAMP_SHARE = 0.5
# The budget's pressure falls as it is met: a short memory lets the loss speak up again.
BETA2 = 0.95


@dataclass(frozen=True)
class GateTraining:
    """What gates are trained to: the fraction to remove, their rate, and what trains beside."""

    target: float
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

    def __init__(self, *, target: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = target
        self.add_callback(_DualStep(self))

    @property
    def goal(self) -> float:
        """The fraction to remove by now: a ramp to the target over the first half of the steps."""
        ramp = max(1.0, RAMP_SHARE * self.args.max_steps)
        share: float = min(1.0, (self.state.global_step + 1) / ramp)
        return self.target * share

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + self.model.budget.penalty(self.model.gates, self.goal)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        gates = self.model.gates
        names = ("mlp", "attention")
        expected = zip(names, gates.removed().tolist(), strict=True)
        closed = zip(names, gates.removed_now().tolist(), strict=True)
        removed = {f"expected_{name}": value for name, value in expected}
        removed |= {f"closed_{name}": value for name, value in closed}
        super().log({**logs, **removed, "goal": self.goal}, *args, **kwargs)


class _DualStep(TrainerCallback):
    """Updates the multipliers after each optimiser step."""

    def __init__(self, trainer: GateTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        model.budget.ascend(model.gates, self.trainer.goal)


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
            target=training.target,
        )
        with masked_linears(model, gates.sources()):
            run(trainer)
    return names
