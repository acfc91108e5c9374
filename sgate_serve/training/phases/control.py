"""The dense control: the dense model, trained as the masked one is recovered, and measured.

It tells what the recovery's training does to the model apart from what pruning does. Neither target
nor method shapes it, so its scores are remembered in the user's cache, and the next run with the
same base, data and recovery takes them from there.
"""

import gc
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from sgate_serve.checkpoint.cached_json import read_cached, write_cached
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.progress import activity
from sgate_serve.training import remembered
from sgate_serve.training.deltas import round_to_base
from sgate_serve.training.phases.distillation import Distillation
from sgate_serve.training.phases.recovery import recover
from sgate_serve.training.phases.trainer import Phase
from sgate_serve.training.phases.tuning import Tuning, untouched_tensors
from sgate_serve.training.precision import autocast
from sgate_serve.training.processes import agreed, processes
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.training.tasks.scores import Scores, measure
from sgate_serve.training.tasks.training_task import TrainingTask
from sgate_serve.training.train_options import TrainOptions

CONTROL = "control"
CONTROLS_DIR = "controls"
# Options that do not shape the control: what is removed and how, where files are, what costs only
# time or memory, and what the key holds in another form. Any other option is part of the key.
APART = (
    *("target", "target_speedup", "target_engine", "target_precision", "target_phase"),
    *("method", "mask", "gates", "balance", "gate_block", "relaxation", "gates_with"),
    *("kurtosis", "gate_learning_rate", "gate_share", "base", "data", "eval_data", "out"),
    *("text_column", "text_pair_column", "label_column", "seq_len", "eval_blocks"),
    *("steps", "dense_steps", "learning_rate", "precision", "save_steps", "report_to"),
    *("gradient_checkpointing", "no_control", "no_refit", "resume", "dry_run"),
)


def control_scores(
    task: TrainingTask, base: Checkpoint, options: TrainOptions, digest: str | None
) -> tuple[Scores, bool]:
    """Return the control's scores, and whether an earlier run measured them.

    `digest` is that of the base, in the main process. The trained model is not kept.
    """
    is_main = processes().is_main_process
    file = file_of(task, options, digest) if is_main and digest is not None else None
    known = agreed(None if file is None else _read(file))
    if known is not None:
        with activity("control, as an earlier run measured it"):
            return known, True
    scores = _train_and_measure(task, base, options)
    # Trainer and model refer to each other; without them there is room for the next model.
    gc.collect()
    if file is not None:
        write_cached(file, scores.to_json())
    return scores, False


def file_of(task: TrainingTask, options: TrainOptions, digest: str) -> Path:
    """Return where the cache keeps the scores."""
    names = (field.name for field in fields(options) if field.name not in APART)
    others = {
        **{name: getattr(options, name) for name in names},
        "steps": options.recovery_steps,
        "learning_rate": options.rate_of(options.recovery),
    }
    return remembered.file_of(CONTROLS_DIR, digest, task.data, options, others)


def _train_and_measure(task: TrainingTask, base: Checkpoint, options: TrainOptions) -> Scores:
    with activity("loading the model", is_brief=True):
        model = task.open_model(base)
    untouched = untouched_tensors(base.spec, [options.recovery])
    distillation = Distillation.of(model, options.distill, untouched)
    rate = options.rate_of(options.recovery)
    phase = Phase.of(options, run_dir_of(options.out) / CONTROL, options.recovery_steps, rate)
    tuning = Tuning(options.recovery, options.rank_for(base.spec.hidden_size), options.seed)
    phase = replace(phase, distillation=distillation)
    round_to_base(model, base, recover(model, base.spec, {}, tuning, task.data, phase))
    with autocast(options):
        return measure(task, model, "trained dense")


def _read(file: Path) -> Scores | None:
    """Return the scores in a file of the cache, or None if it is missing or damaged."""
    with suppress(KeyError, TypeError, AttributeError):
        return Scores.from_json(read_cached(file))
    return None
