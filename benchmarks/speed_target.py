"""What a target of speed costs a model beside a target of weights, at equal predicted speed.

`python -m benchmarks.speed_target --model MODEL --data TRAIN.txt --text A.txt,B.txt --json FILE`
prunes a model to each target of weights, predicts the speedup of the result from the times of its
blocks, and prunes the model for that speedup. It records the perplexity of both before any
recovery, and their speed and the dense model's in interleaved rounds.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.precision import with_graph
from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import compare
from sgate_serve.bench.known_block_times import known_block_times
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import hardware, library_versions
from sgate_serve.gates import Gates
from sgate_serve.options import option
from sgate_serve.plan.block_times import BlockTimes
from sgate_serve.training import TrainOptions
from sgate_serve.training.masks.coupled_selection import cheapest_num_groups, select_units
from sgate_serve.training.masks.importance import SCORING_BATCHES, fisher_scores
from sgate_serve.training.masks.known_scores import known_scores
from sgate_serve.training.masks.prunable_sites import unit_sites
from sgate_serve.training.masks.removal_target import (
    RemovalTarget,
    SpeedTarget,
    WeightTarget,
    compile_gates,
)
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.precision import autocast
from sgate_serve.training.tasks.causal_lm import CausalLMTask
from sgate_serve.training.tasks.scores import Scores, measure

BY_WEIGHTS, BY_SPEED = "weights", "speed"
# Finds the gates of a target.
Select = Callable[[RemovalTarget], Gates]


@dataclass(frozen=True)
class SpeedTargetOptions:
    """The model, its texts and targets, and the amount of measuring."""

    model: str = option("smollm2/dense", "a trained causal LM with its tokenizer")
    data: str = option("smollm2/texts/train.txt", "text whose Fisher scores rank the gates")
    text: str = option(
        "smollm2/texts/python_docs.txt,smollm2/texts/handbook.txt",
        "held-out texts, separated by commas",
    )
    targets: str = option("0.2,0.3,0.4", "fractions of the block weights, separated by commas")
    precision: str = option("int8", "precision of the onnx graphs")
    phase: str = option("decode", "phase to make faster: decode, prefill or mix")
    eval_blocks: int = option(16, "blocks of each text")
    rounds: int = option(7, "interleaved rounds of each comparison")


def run(options: SpeedTargetOptions) -> dict[str, Any]:
    """Prune and measure in a temporary folder; return the record."""
    model = Checkpoint.open(options.model)
    times = known_block_times(model, "onnx", options.precision)
    training = _training(options)
    task = CausalLMTask(model, training)
    network = task.open_model(model)
    batches = task.data.shuffled_batches(training.batch_size, SCORING_BATCHES, training.seed)
    sites = unit_sites(model.spec)
    compute = partial(fisher_scores, network, sites, batches)
    with autocast(training):
        scores = known_scores("fisher", sites, model, task.data, training, compute)

    def select(target: RemovalTarget) -> Gates:
        groups = cheapest_num_groups(model.spec, scores, target)
        ranking = Ranking(scores, method="one-shot fisher scores", num_groups=groups)
        return select_units(model.spec, ranking, target, model.fingerprint).gates

    def perplexity(gates: Gates | None) -> dict[str, float]:
        masks = {} if gates is None else gates.masks(model.spec)
        with autocast(training):
            return _perplexities(measure(task, network, "masked", masks), training)

    pairs = []
    for fraction in map(float, options.targets.split(",")):
        masks = _equally_fast(model.spec, times, fraction, select, options.phase)
        pairs.append(
            {
                "target": fraction,
                **{
                    name: _described(model.spec, times, gates, options.phase)
                    | {"perplexity": perplexity(gates)}
                    for name, gates in masks.items()
                },
                **_speeds(model, masks, options),
            }
        )
    return {
        "command": command_line("speed_target", _named_only(options)),
        "options": asdict(_named_only(options)),
        "block_times": times.to_json(),
        "dense": {"perplexity": perplexity(None)},
        "pairs": pairs,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def _equally_fast(
    spec: ModelSpec, times: BlockTimes, fraction: float, select: Select, phase: str
) -> dict[str, Gates]:
    """Return the gates of a target of weights, and those of the speed predicted for them."""
    by_weights = select(WeightTarget(fraction))
    reached = SpeedTarget(2, times, phase).predicted(compile_gates(spec, by_weights), spec)
    return {BY_WEIGHTS: by_weights, BY_SPEED: select(SpeedTarget(reached, times, phase))}


def _described(spec: ModelSpec, times: BlockTimes, gates: Gates, phase: str) -> dict[str, Any]:
    plan = compile_gates(spec, gates)
    return {
        "predicted_speedup": SpeedTarget(2, times, phase).predicted(plan, spec),
        "removed": WeightTarget(0.5).removed(spec, gates),
        "kv_groups": sum(len(layer.kv_heads) for layer in plan.layers),
        "mlp_units": sum(len(layer.mlp_units) for layer in plan.layers),
    }


def _speeds(
    model: Checkpoint, masks: dict[str, Gates], options: SpeedTargetOptions
) -> dict[str, Any]:
    """Convert both masks, and time them and the dense model interleaved."""
    with tempfile.TemporaryDirectory(prefix="sgate-speed-") as folder:
        root, models = Path(folder), {}
        for name, gates in masks.items():
            replace(gates, base_digest=model.digest).write(root / f"{name}-gates")
            convert(ConvertOptions(options.model, root / f"{name}-hf", root / f"{name}-gates"))
            models[name] = with_graph(root / f"{name}-hf", root / name, options.precision)
        dense = with_graph(model.folder, root / "dense", options.precision)
        workload = Workload(options.rounds, prefill_tokens=128, batches=(1,))
        beside = {BY_WEIGHTS: models[BY_WEIGHTS]}
        found = compare(dense, models[BY_SPEED], "onnx", workload, beside).to_json()
    return {
        "measured": {BY_SPEED: found["speedups"]["onnx"], BY_WEIGHTS: found["beside"][BY_WEIGHTS]},
        "floor": found["floor"],
        "tokens_per_second": found["tokens_per_second"],
        "workload": found["workload"],
    }


def _training(options: SpeedTargetOptions) -> TrainOptions:
    return TrainOptions(
        base=options.model,
        data=Path(options.data),
        out=Path("unused"),
        eval_data=tuple(Path(text) for text in options.text.split(",")),
        eval_blocks=options.eval_blocks,
        batch_size=2,
    )


def _perplexities(scores: Scores, training: TrainOptions) -> dict[str, float]:
    own = training.eval_data[0].stem
    found = {own: scores.held_out, **scores.elsewhere}
    return {name: metrics["perplexity"].value for name, metrics in found.items()}


def _named_only(options: SpeedTargetOptions) -> SpeedTargetOptions:
    """Return the options with names in place of local paths."""
    texts = ",".join(Path(text).name for text in options.text.split(","))
    model = Path(options.model)
    return replace(
        options,
        model=f"{model.parent.name}/{model.name}",
        data=Path(options.data).name,
        text=texts,
    )


def main() -> None:
    run_script("speed_target", __doc__, SpeedTargetOptions, run)


if __name__ == "__main__":
    main()
