"""The recovery phase: tunes the model under its final mask. Without masks it is the dense phase."""

from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Masks
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.phases.lean_steps import lean_steps
from sgate_serve.training.phases.narrow_mlps import narrow_mlps
from sgate_serve.training.phases.trainer import PartlyFrozen, Phase, PhaseTrainer, run
from sgate_serve.training.phases.tuning import Tuning, closed_linears, tuned
from sgate_serve.training.tasks.training_data import TrainingData


def recover(
    model: nn.Module,
    spec: ModelSpec,
    masks: Masks,
    tuning: Tuning,
    data: TrainingData,
    phase: Phase,
) -> tuple[str, ...]:
    """Tune `model` in place under `masks`; return the names of the tensors that changed.

    Experts that a router never chooses stay as they are.
    """
    closed = closed_linears(spec, masks)
    with narrow_mlps(model, spec, masks) as masks, tuned(model, spec, tuning, closed) as names:
        trainer = PhaseTrainer(
            model=PartlyFrozen(model),
            args=phase.arguments(is_ragged=data.is_ragged),
            train_dataset=data.train,
            data_collator=data.collate,
            distillation=phase.distillation,
        )
        with masked_by(model, masks), lean_steps(model, spec, phase):
            run(trainer, phase.name)
    return names
