"""One training run: data, a dense start, gates, recovery under them, files."""

import shutil
import time
from collections.abc import Container, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.data.metrics import Scores
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates, with_added_biases
from sgate_serve.plan import Masks
from sgate_serve.plan.figures import Figures
from sgate_serve.training.dense_start import BASE_DIR, dense_start
from sgate_serve.training.distillation import Distillation
from sgate_serve.training.find_gates import find_gates
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masking import masked_by
from sgate_serve.training.outline import outline
from sgate_serve.training.parts import Part, kept_tensors
from sgate_serve.training.phases import Phase, log_of, recover
from sgate_serve.training.processes import processes
from sgate_serve.training.snap import compile_gates
from sgate_serve.training.task import TASKS, Task
from sgate_serve.training.train_options import DENSE, GATES, NONE, TrainOptions, TrainResult
from sgate_serve.training.work_dir import check_empty, resume_work_dir, start_work_dir, work_dir_of

METRICS_FILE = "metrics.json"
PHASES = ("dense", "gates", "recovery")


def run_training(options: TrainOptions) -> TrainResult:
    """Do the run that `options` describe; errors as for `sgate_serve.training.train`."""
    started = time.monotonic()
    check_empty(options.out)
    given = Checkpoint.open(options.base)
    given.check_unquantized()
    check_base(given, options)
    task = TASKS[options.task](given, options)
    planned = outline(given, task, options)
    if options.dry_run:
        return TrainResult(options.out, planned)
    work, state = work_dir_of(options.out), processes()
    state.wait_for_everyone()
    if state.is_main_process:
        (resume_work_dir if options.resume else start_work_dir)(work, options.to_json())
    state.wait_for_everyone()
    base = dense_start(task, given, options)
    gates, deltas, scores = _train(task, base, options)
    metrics = {
        **_removal(gates, base, deltas),
        "scores": {name: _score_json(of) for name, of in scores.items()},
        **planned,
        "log": {name: log_of(work / name) for name in PHASES if (work / name).exists()},
        "seconds": time.monotonic() - started,
        "seed": options.seed,
        "options": options.to_json(),
    }
    state.wait_for_everyone()
    if state.is_main_process:
        with new_folder(options.out) as writer:
            if base is not given:
                shutil.copytree(base.folder, writer.path(BASE_DIR))
            gates.stage(writer, deltas)
            writer.write_json(METRICS_FILE, metrics)
        shutil.rmtree(work)
    state.wait_for_everyone()
    return TrainResult(options.out, metrics)


def check_base(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError if the base cannot be trained on, or not to the target, or so long."""
    if base.config.get("model_type") == SGATE_MODEL_TYPE:
        raise TrainingError(f"{base.folder} is already pruned; train on its dense base")
    if options.seq_len > base.spec.max_positions:
        raise TrainingError(
            f"--seq-len {options.seq_len}: {base.folder} has {base.spec.max_positions} positions"
        )
    if options.method != DENSE:
        kind = GRANULARITIES[options.gates]
        kind.check_reachable(base.spec, options.target, options.gate_block)


def _train(
    task: Task, base: Checkpoint, options: TrainOptions
) -> tuple[Gates, dict[str, Array], dict[str, Scores]]:
    """Find the gates and recover; return them, the tensors that changed, and scores of each."""
    model = task.open_model(base.folder)
    scores = {"dense": task.scores(model)}
    kinds = [*([options.beside_gates] if options.method == GATES else []), options.recovery]
    distillation = Distillation.of(model, options.distill, kept_tensors(base.spec, kinds))

    def phase(name: str, steps: int, part: str) -> Phase:
        folder, rate = work_dir_of(options.out) / name, options.rate_of(part)
        return replace(Phase.of(options, folder, steps, rate), distillation=distillation)

    gate_phase = phase("gates", options.gate_steps, options.beside_gates)
    gates, changed = find_gates(model, base, task.data, options, gate_phase)
    masks = gates.masks(base.spec)
    is_dense = options.method == DENSE
    scores["masked"] = scores["dense"] if is_dense else _masked_scores(task, model, masks)
    scores["recovered"] = scores["masked"]
    if options.recovery != NONE:
        part = Part(options.recovery, options.lora_rank, options.seed)
        last_phase = phase("recovery", options.recovery_steps, part.kind)
        changed += recover(model, base.spec, masks, part, task.data, last_phase)
        scores["recovered"] = _masked_scores(task, model, masks)
    return gates, {name: _array(model, name) for name in dict.fromkeys(changed)}, scores


def _masked_scores(task: Task, model: nn.Module, masks: Masks) -> Scores:
    with masked_by(model, masks):
        return task.scores(model)


def _array(model: nn.Module, name: str) -> Array:
    array: Array = model.get_parameter(name).detach().to(torch.float32).cpu().numpy()
    if not np.isfinite(array).all():
        raise TrainingError(f"training ended with NaN or infinity in {name}; lower --learning-rate")
    return array


def _score_json(scores: Scores) -> Mapping[str, Any]:
    return {name: asdict(score) for name, score in scores.items()}


def _removal(gates: Gates, base: Checkpoint, deltas: Container[str]) -> dict[str, Any]:
    """Return what the Plan removes in the end; biases that the recovery added count against it."""
    plan = compile_gates(with_added_biases(base.spec, deltas), gates)
    figures = Figures.of(plan, base.spec)
    counted = ("naive", "compiled", "index_free", "executed")
    return {
        "method": gates.method,
        "removed": figures.removed,
        "removed_overall": figures.overall,
        **{f"removed_{name}": getattr(figures, name) for name in counted},
    }
