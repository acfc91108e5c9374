"""Training under gates that are constants: the last phase, and the dense one before any gate."""

from torch import nn

from sgate_serve.plan import Masks
from sgate_serve.spec import ModelSpec
from sgate_serve.training.masking import masked_by
from sgate_serve.training.parts import Part, trained_part
from sgate_serve.training.phases import PartlyFrozen, Phase, PhaseTrainer, run
from sgate_serve.training.samples import Data


def recover(
    model: nn.Module, spec: ModelSpec, masks: Masks, part: Part, data: Data, phase: Phase
) -> tuple[str, ...]:
    """Train `part` of `model` in place under `masks`; return the names of what changed."""
    with trained_part(model, spec, part) as names:
        trainer = PhaseTrainer(
            model=PartlyFrozen(model),
            args=phase.arguments(is_ragged=data.is_ragged),
            train_dataset=data.train,
            data_collator=data.collate,
            distillation=phase.distillation,
        )
        with masked_by(model, masks):
            run(trainer)
    return names
