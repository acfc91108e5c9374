"""One training run from start to end: data, the three phases, and the files of the result."""

import shutil
import time
from collections.abc import Container
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.environment import peak_rss_bytes
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates, with_added_biases
from sgate_serve.plan import Masks, Plan
from sgate_serve.plan.figures import Figures
from sgate_serve.progress import activity
from sgate_serve.training.deltas import round_to_base, stored_array
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.given_mask import read_mask
from sgate_serve.training.masks.removal_target import (
    RemovalTarget,
    SpeedTarget,
    WeightTarget,
    compile_gates,
)
from sgate_serve.training.methods import find_gates
from sgate_serve.training.overview import overview
from sgate_serve.training.phases.control import control_scores
from sgate_serve.training.phases.dense import BASE_DIR, train_dense_base
from sgate_serve.training.phases.distillation import Distillation
from sgate_serve.training.phases.recovery import recover
from sgate_serve.training.phases.trainer import Phase, log_of, speed_of
from sgate_serve.training.phases.tuning import Tuning, untouched_tensors
from sgate_serve.training.precision import autocast
from sgate_serve.training.processes import agreed, processes
from sgate_serve.training.run_dir import run_dir_of, start_run_dir
from sgate_serve.training.tasks.scores import Scores, measure, scores_json
from sgate_serve.training.tasks.training_task import TASKS, TrainingTask
from sgate_serve.training.train_options import (
    DENSE,
    GATES,
    NONE,
    BlockTimer,
    TrainOptions,
    TrainResult,
)

METRICS_FILE = "metrics.json"
DENSE_TRAINED = "dense_trained"
KNOWN_CONTROL = (
    "the dense control was trained and measured by an earlier run with the same base, data and "
    "recovery"
)
PHASES = ("dense", "control", "gates", "recovery")


def run_training(
    given: Checkpoint, options: TrainOptions, timer: BlockTimer | None = None
) -> TrainResult:
    """Do the run that `options` describe on a base; raises the errors of `training.train`."""
    started = time.monotonic()
    target = removal_target(given, options, timer)
    check_target(given, target, options)
    with activity("reading and tokenizing the data", is_brief=True):
        task = TASKS[options.task](given, options)
    if options.mask is not None and task.needs_head:
        raise TrainingError(
            f"--mask {options.mask}: {given.folder} lacks a classification head, so it is not the "
            "model of this mask; give the folder `base` beside the gates"
        )
    summary = overview(given, task, options)
    if options.dry_run:
        return TrainResult(options.out, summary)
    run_dir, state = run_dir_of(options.out), processes()
    state.wait_for_everyone()
    if state.is_main_process and not options.resume:
        start_run_dir(run_dir, options.to_json())
    state.wait_for_everyone()
    base = train_dense_base(task, given, options)
    # Before training, which takes long enough for someone to edit the folder.
    digest = base.digest if state.is_main_process else None
    control, notes = {}, summary["notes"]
    if options.has_control:
        control[DENSE_TRAINED], is_known = control_scores(task, base, options, digest)
        notes = [*notes, *([KNOWN_CONTROL] if is_known else [])]
    gates, deltas, stages = _train(task, base, target, options)
    # The first stage is the dense model; the control comes after it.
    stages = {"dense": stages["dense"], **control, **stages}
    logs = {name: log_of(run_dir / name) for name in PHASES if (run_dir / name).exists()}
    metrics = {
        **_removal(gates, base, deltas, target),
        **scores_json(stages),
        **summary,
        "notes": notes,
        "log": logs,
        "tokens_per_second": {
            name: value for name, log in logs.items() if (value := speed_of(log))
        },
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": time.monotonic() - started,
        "seed": options.seed,
        "options": options.to_json(),
    }
    state.wait_for_everyone()
    if state.is_main_process:
        with activity("saving", is_brief=True), new_folder(options.out) as writer:
            if base is not given:
                shutil.copytree(base.folder, writer.path(BASE_DIR))
            replace(gates, base_digest=digest).stage(writer, deltas)
            writer.write_json(METRICS_FILE, metrics)
        shutil.rmtree(run_dir)
    state.wait_for_everyone()
    return TrainResult(options.out, metrics)


def removal_target(
    base: Checkpoint, options: TrainOptions, timer: BlockTimer | None
) -> RemovalTarget:
    """Return the target of the options; the main process measures what a speedup needs."""
    if options.target_speedup is None:
        return WeightTarget(options.weight_target)
    if timer is None:
        raise TrainingError("--target-speedup: give `train` a timer of blocks, as the CLI does")
    if (options.task == CAUSAL_LM) != (base.spec.task == CAUSAL_LM):
        raise TrainingError(
            f"--target-speedup: {base.folder} is a {base.spec.head.model_class}, which is timed "
            f"otherwise than --task {options.task}; give --target instead"
        )
    times = None
    if processes().is_main_process:
        times = timer(base, options.target_engine, options.target_precision)
    known = agreed(times)
    assert known is not None
    return SpeedTarget(options.target_speedup, known, options.speed_phase)


def check_target(base: Checkpoint, target: RemovalTarget, options: TrainOptions) -> None:
    """Raise TrainingError for a mask that does not fit, or a target that no mask reaches."""
    if options.mask is not None:
        read_mask(base, options)
    elif options.method != DENSE:
        granularity = GRANULARITIES[options.gates]
        granularity.check_reachable(base.spec, target, options.gate_block)


def _train(
    task: TrainingTask, base: Checkpoint, target: RemovalTarget, options: TrainOptions
) -> tuple[Gates, dict[str, Array], dict[str, Scores]]:
    """Return the gates, the tensors that changed, and the scores after each stage."""
    with activity("loading the model", is_brief=True):
        model = task.open_model(base)

    def scores(stage: str, masks: Masks = MappingProxyType({})) -> Scores:
        with autocast(options):
            return measure(task, model, stage, masks)

    stages = {"dense": scores("dense")}
    kinds = [*([options.gate_tuning] if options.method == GATES else []), options.recovery]
    # Weights of a given mask may replace any tensor.
    untouched = untouched_tensors(base.spec, kinds) if options.mask is None else ()
    distillation = Distillation.of(model, options.distill, untouched)

    def settings(name: str, steps: int, tuning: str) -> Phase:
        folder, rate = run_dir_of(options.out) / name, options.rate_of(tuning)
        return replace(Phase.of(options, folder, steps, rate), distillation=distillation)

    gate_phase = settings("gates", options.gate_steps, options.gate_tuning)
    with autocast(options):
        gates, changed = find_gates(model, base, task.data, target, options, gate_phase)
    masks = gates.masks(base.spec)
    if options.recovery == NONE:
        round_to_base(model, base, changed)
    is_dense = options.method == DENSE
    stages["masked"] = stages["dense"] if is_dense else scores("masked", masks)
    stages["recovered"] = stages["masked"]
    if options.recovery != NONE:
        tuning = Tuning(options.recovery, options.rank_for(base.spec.hidden_size), options.seed)
        recovery = settings("recovery", options.recovery_steps, tuning.kind)
        changed += recover(model, base.spec, masks, tuning, task.data, recovery)
        round_to_base(model, base, changed)
        stages["recovered"] = scores("recovered", masks)
    return gates, {name: stored_array(model, base, name) for name in dict.fromkeys(changed)}, stages


def _removal(
    gates: Gates, base: Checkpoint, deltas: Container[str], target: RemovalTarget
) -> dict[str, Any]:
    """Return what the final Plan removes; added biases reduce it."""
    with activity("compiling the plan", is_brief=True):
        plan = compile_gates(with_added_biases(base.spec, deltas), gates)
    figures = Figures.of(plan, base.spec)
    counted = ("naive", "compiled", "index_free", "executed")
    return {
        "method": gates.method,
        "removed": figures.removed,
        "removed_overall": figures.overall,
        **{f"removed_{name}": getattr(figures, name) for name in counted},
        **({"speed": _speed(target, plan, base)} if isinstance(target, SpeedTarget) else {}),
    }


def _speed(target: SpeedTarget, plan: Plan, base: Checkpoint) -> dict[str, Any]:
    """Return the predicted speedup of a plan, and what the times behind it hold for."""
    return {
        "target_speedup": target.speedup,
        "predicted_speedup": target.predicted(plan, base.spec),
        "phase": target.phase,
        **target.times.conditions(),
    }
