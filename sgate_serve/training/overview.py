"""An overview of a run for `--dry-run` and metrics.json: its gates, data and trained parameters.

It is computed from shapes alone.
"""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.family import BLOCKS, CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.prunable_sites import num_block_weights
from sgate_serve.training.phases.dense import num_dense_steps
from sgate_serve.training.phases.tuning import BlockLinears, embedding_tensors, head_tensors
from sgate_serve.training.precision import precision_of
from sgate_serve.training.tasks.training_task import TrainingTask
from sgate_serve.training.train_options import BIAS, DENSE, FULL, GATES, LORA, TrainOptions


def overview(base: Checkpoint, task: TrainingTask, options: TrainOptions) -> dict[str, Any]:
    """Return the gates, the data, and the steps and trained parameters of each phase."""
    spec = _classifier_spec(base, task.num_labels) if task.needs_head else base.spec
    rank = options.rank_for(spec.hidden_size)
    num_gates: dict[str, int] = {}
    for site in GRANULARITIES[options.gates].sites(spec):
        num_gates[site.block] = num_gates.get(site.block, 0) + site.gate.num_gates
    gates = sum(num_gates.values()) if options.method == GATES else 0
    phases = {
        "dense": (num_dense_steps(task, options), num_trained(spec, LORA, rank)),
        "control": (
            options.recovery_steps if options.has_control else 0,
            num_trained(spec, options.recovery, rank),
        ),
        "gates": (
            options.gate_steps,
            gates + num_trained(spec, options.gate_tuning, rank),
        ),
        "recovery": (
            options.recovery_steps,
            num_trained(spec, options.recovery, rank),
        ),
    }
    return {
        "parameters": spec.num_parameters,
        "block_weights": {block: num_block_weights(spec, block) for block in BLOCKS},
        "gates": {} if options.method == DENSE else num_gates,
        "examples": {
            "train": len(task.data.train),
            "held_out": len(task.data.held_out),
            "elsewhere": {name: len(part) for name, part in task.data.elsewhere.items()},
        },
        "precision": precision_of(options),
        "phases": {
            name: {"steps": steps, "trained_parameters": trained}
            for name, (steps, trained) in phases.items()
            if steps
        },
        "notes": list(task.notes),
    }


def _classifier_spec(base: Checkpoint, num_labels: int) -> ModelSpec:
    """Return the architecture of a base with a classifier's head instead of its own."""
    head = {
        "architectures": [base.spec.family.tasks[CLASSIFICATION].model_class],
        "num_labels": num_labels,
        "id2label": None,
    }
    return ModelSpec.from_config({**base.config, **head}, str(base.folder))


def num_trained(spec: ModelSpec, kind: str, rank: int) -> int:
    """Count the parameters that a tuning trains, including a classifier's head."""
    shapes = spec.tensor_shapes()
    count = sum(_size(shapes[name]) for name in head_tensors(spec))
    modules = spec.module_names()
    if kind == LORA:
        shape_of = (spec.module_shape(index, name) for name, index in modules.items())
        count += sum(rank * (rows + columns) for rows, columns in shape_of)
    elif kind == BIAS:
        writers = set(BlockLinears.of(spec).writers)
        count += sum(
            spec.module_shape(index, name)[0]
            for name, index in modules.items()
            if f"{name}.bias" in shapes or name in writers
        )
    elif kind == FULL:
        left_out = {*embedding_tensors(spec), *head_tensors(spec)}
        count += sum(_size(shape) for name, shape in shapes.items() if name not in left_out)
    return count


def _target(options: TrainOptions) -> str:
    if options.target_speedup is None:
        return f"target {options.weight_target:.0%}"
    return (
        f"target {options.target_speedup:g} times the speed of {options.speed_phase} on "
        f"{options.target_engine} in {options.target_precision}"
    )


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def overview_lines(values: Mapping[str, Any], options: TrainOptions) -> list[str]:
    """Return the overview as lines of text."""
    gates = ", ".join(f"{count:,} of {block}" for block, count in values["gates"].items())
    weights = sum(values["block_weights"].values())
    examples = values["examples"]
    elsewhere = (f", {count:,} of {name}" for name, count in examples["elsewhere"].items())
    lines = [
        f"model      {values['parameters']:,} parameters, {weights:,} of them block weights",
        f"gates      {options.gates}: {gates or 'none'}; {_target(options)}"
        if options.mask is None
        else f"gates      of {options.mask}",
        f"data       {examples['train']:,} samples, {examples['held_out']:,} held out"
        + "".join(elsewhere),
        f"precision  {values['precision']}",
    ]
    for name, phase in values["phases"].items():
        share = phase["trained_parameters"] / values["parameters"]
        lines.append(
            f"{name:<11}{phase['steps']:,} steps of {options.batch_size}, "
            f"{phase['trained_parameters']:,} trained parameters ({share:.2%})"
        )
    return lines + [f"note       {note}" for note in values["notes"]]
