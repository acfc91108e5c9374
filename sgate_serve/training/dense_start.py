"""Dense training before anything is removed; what comes of it is the base of the gates: OUT/base.

A base without a head gets one here, for gates name their base by its tensors.
"""

from pathlib import Path
from typing import Any

from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.companions import copy_companions
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.training.parts import Part
from sgate_serve.training.phases import Phase, recover
from sgate_serve.training.processes import processes
from sgate_serve.training.task import Task
from sgate_serve.training.train_options import LORA, TrainOptions
from sgate_serve.training.work_dir import work_dir_of

BASE_DIR = "base"
PHASE = "dense"


def num_dense_steps(task: Task, options: TrainOptions) -> int:
    """Return the steps that the user asked for; without a word, --steps for a new head."""
    if options.dense_steps is not None:
        return options.dense_steps
    return options.steps if task.needs_head else 0


def dense_start(task: Task, base: Checkpoint, options: TrainOptions) -> Checkpoint:
    """Return the base of the gates: the given one, or a trained one in the run's work folder."""
    steps = num_dense_steps(task, options)
    if not steps and not task.needs_head:
        return base
    work = work_dir_of(options.out)
    folder = work / BASE_DIR
    if not (folder / SINGLE_FILE).exists():
        model = task.open_model(base.folder)
        if steps:
            part = Part(LORA, options.lora_rank, options.seed)
            rate = options.rate_of(LORA)
            phase = Phase.of(options, work / PHASE, steps, rate)
            recover(model, spec_of(model), {}, part, task.data, phase)
        if processes().is_main_process:
            write_base(model, base.folder, folder)
    processes().wait_for_everyone()
    return Checkpoint.open(folder)


def spec_of(model: nn.Module) -> ModelSpec:
    """Return the architecture of a loaded model; its config may still name the class it came of."""
    config: Any = model.config
    names = {"architectures": [type(model).__name__]}
    return ModelSpec.from_config(config.to_dict() | names, f"config of {type(model).__name__}")


def write_base(model: nn.Module, source: Path, folder: Path) -> None:
    """Write a model folder with the companions of `source`, all or nothing."""
    with new_folder(folder) as writer:
        saved: Any = model
        saved.save_pretrained(writer.staging, max_shard_size="1000GB")
        copy_companions(source, writer, spec_of(model).task)
        writer.last = [SINGLE_FILE]
