"""The first phase: train gate logits on the frozen base under the budget."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from sgate_serve.training.budget import Budget
from sgate_serve.training.documents import Blocks
from sgate_serve.training.gate_functions import NOISE
from sgate_serve.training.masking import masked_linears
from sgate_serve.training.phases import BlockDataset, PartlyFrozen, Phase, run
from sgate_serve.training.sites import Scores
from sgate_serve.training.trained_gates import TrainedGates

RAMP_SHARE = 0.5


class GatedModel(PartlyFrozen):
    """The frozen base, its gates and their budget; the gates act through `masked_linears`."""

    def __init__(self, model: nn.Module, gates: TrainedGates) -> None:
        super().__init__(model)
        self.gates = gates
        self.budget = Budget()


class GateTrainer(Trainer):
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
        outputs = model(**inputs)
        penalty: Tensor = self.model.budget.penalty(self.model.gates, self.goal)
        loss = outputs.loss + penalty
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mlp, attention = self.model.gates.removed(NOISE).tolist()
        removed = {"removed_mlp": mlp, "removed_attention": attention, "goal": self.goal}
        super().log({**logs, **removed}, *args, **kwargs)


class _DualStep(TrainerCallback):
    """Updates the multipliers after each optimiser step."""

    def __init__(self, trainer: GateTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        model.budget.ascend(model.gates, self.trainer.goal)


def train_gates(
    model: nn.Module, gates: TrainedGates, blocks: Blocks, target: float, phase: Phase
) -> Scores:
    """Train `gates` on the frozen `model` and return their logits, by gate key."""
    model.requires_grad_(False)
    gated = GatedModel(model, gates)
    trainer = GateTrainer(
        model=gated, args=phase.arguments(), train_dataset=BlockDataset(blocks), target=target
    )
    with masked_linears(model, gates.sources()):
        run(trainer)
    return gates.scores()
