"""The dense phase: LoRA on the dense model, before anything is removed.

Its result is the base that the gates refer to, OUT/base. A base without a head gets one here,
because gates identify their base by its tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.companions import copy_companions
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.models.experts import stacked_state
from sgate_serve.progress import activity
from sgate_serve.training.phases.recovery import recover
from sgate_serve.training.phases.trainer import Phase
from sgate_serve.training.phases.tuning import Tuning
from sgate_serve.training.processes import processes
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.training.tasks.frozen_model import TURNED_OFF
from sgate_serve.training.tasks.training_task import TrainingTask
from sgate_serve.training.train_options import LORA, TrainOptions

BASE_DIR = "base"
PHASE = "dense"


def num_dense_steps(task: TrainingTask, options: TrainOptions) -> int:
    """Return the steps of the dense phase: --dense-steps, or by default --steps for a new head."""
    if options.dense_steps is not None:
        return options.dense_steps
    return options.steps if task.needs_head else 0


def train_dense_base(task: TrainingTask, base: Checkpoint, options: TrainOptions) -> Checkpoint:
    """Return the base of the gates: the given one, or one trained in the run folder."""
    steps = num_dense_steps(task, options)
    if not steps and not task.needs_head:
        return base
    run_dir = run_dir_of(options.out)
    folder = run_dir / BASE_DIR
    if not (folder / SINGLE_FILE).exists():
        with activity("loading the model", is_brief=True):
            model = task.open_model(base)
        if steps:
            tuning = Tuning(LORA, options.rank_for(base.spec.hidden_size), options.seed)
            rate = options.rate_of(LORA)
            phase = Phase.of(options, run_dir / PHASE, steps, rate)
            recover(model, spec_of(model), {}, tuning, task.data, phase)
        if processes().is_main_process:
            with activity("saving the dense base", is_brief=True):
                write_base(model, base, folder)
    processes().wait_for_everyone()
    return Checkpoint.open(folder)


def spec_of(model: nn.Module) -> ModelSpec:
    """Return the architecture of a loaded model, whose config may still name its original class."""
    config: Any = model.config
    names = {"architectures": [type(model).__name__]}
    return ModelSpec.from_config(config.to_dict() | names, f"config of {type(model).__name__}")


def write_base(model: nn.Module, source: Checkpoint, folder: Path) -> None:
    """Write a model folder with the tokenizer and other companion files of `source`, atomically."""
    restore_config(model, source.config)
    with new_folder(folder) as writer:
        saved: Any = model
        spec = spec_of(model)
        state = stacked_state(saved.state_dict(), spec.family)
        saved.save_pretrained(writer.staging, state_dict=state, max_shard_size="1000GB")
        copy_companions(source.folder, writer, spec.task, saved.config.to_dict())
        writer.last = [SINGLE_FILE]


def restore_config(model: nn.Module, stored: Mapping[str, Any]) -> None:
    """Set the fields of a config that training turned off for itself to what the base says."""
    config: Any = model.config
    for name in TURNED_OFF:
        if name in config.__dataclass_fields__:
            setattr(config, name, stored.get(name, config.__dataclass_fields__[name].default))
        elif name in vars(config):
            delattr(config, name)
