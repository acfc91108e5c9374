"""What a target of speed costs a model beside a target of weights, at equal predicted speed.

`python -m benchmarks.speed_target --model MODEL --data TRAIN.txt --text A.txt,B.txt --json FILE`
prunes a model to each target of weights, predicts the speedup of the result from the times of its
blocks, and prunes the model for that speedup. It records the perplexity of both before any
recovery, and their speed and the dense model's in interleaved rounds.
"""

import tempfile
from dataclasses import asdict, dataclass, replace
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
from sgate_serve.options import option
from sgate_serve.plan.block_times import BlockTimes
from sgate_serve.training import TrainOptions, train

BY_WEIGHTS, BY_SPEED = "weights", "speed"


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
    refit: int = option(0, "1 refits the weights after the cut, which takes minutes")
    eval_blocks: int = option(16, "blocks of each text")
    rounds: int = option(7, "interleaved rounds of each comparison")


def run(options: SpeedTargetOptions) -> dict[str, Any]:
    """Prune and measure in a temporary folder; return the record."""
    model = Checkpoint.open(options.model)
    times = known_block_times(model, "onnx", options.precision)
    with tempfile.TemporaryDirectory(prefix="sgate-speed-") as folder:
        root = Path(folder)
        dense = with_graph(model.folder, root / "dense", options.precision)
        pairs = [
            _pair(dense, times, float(target), root / target, options)
            for target in options.targets.split(",")
        ]
    return {
        "command": command_line("speed_target", _named_only(options)),
        "options": asdict(_named_only(options)),
        "block_times": times.to_json(),
        "pairs": pairs,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def _pair(
    dense: Checkpoint, times: BlockTimes, target: float, root: Path, options: SpeedTargetOptions
) -> dict[str, Any]:
    """Prune to a target of weights and then to its predicted speed; measure both."""
    phase = times.phase(options.phase)
    by_weights = _pruned(root / BY_WEIGHTS, options, target=target)
    speedup = phase.seconds(dense.spec) / phase.seconds(by_weights["model"].spec)
    by_speed = _pruned(
        root / BY_SPEED,
        options,
        target_speedup=speedup,
        target_precision=options.precision,
        target_phase=options.phase,
    )
    models = {BY_SPEED: by_speed["model"], BY_WEIGHTS: by_weights["model"]}
    workload = Workload(options.rounds, prefill_tokens=128, batches=(1,))
    measured = compare(
        dense, models[BY_SPEED], "onnx", workload, {BY_WEIGHTS: models[BY_WEIGHTS]}
    ).to_json()
    speeds = {
        BY_SPEED: measured["speedups"]["onnx"],
        BY_WEIGHTS: measured["beside"][BY_WEIGHTS],
    }
    return {
        "target": target,
        "floor": measured["floor"],
        **{
            name: {
                "predicted_speedup": phase.seconds(dense.spec) / phase.seconds(models[name].spec),
                "measured": speeds[name],
                "widths": _widths(models[name].spec),
                **found["scores"],
            }
            for name, found in ((BY_SPEED, by_speed), (BY_WEIGHTS, by_weights))
        },
    }


def _pruned(folder: Path, options: SpeedTargetOptions, **target: Any) -> dict[str, Any]:
    """Prune without recovery; return the converted model and its scores before and after."""
    texts = tuple(Path(text) for text in options.text.split(","))
    training = TrainOptions(
        base=options.model,
        data=Path(options.data),
        out=folder / "gates",
        eval_data=texts,
        eval_blocks=options.eval_blocks,
        batch_size=2,
        recovery="none",
        no_refit=not options.refit,
        **target,
    )
    metrics = train(training, known_block_times).metrics
    convert(ConvertOptions(options.model, folder / "hf", training.out))
    scores = {texts[0].stem: metrics["scores"], **metrics["scores_elsewhere"]}
    return {
        "model": with_graph(folder / "hf", folder / "timed", options.precision),
        "scores": {
            "removed": metrics["removed"],
            "perplexity": {
                name: {stage: of[stage]["perplexity"]["value"] for stage in ("dense", "masked")}
                for name, of in scores.items()
            },
        },
    }


def _widths(spec: ModelSpec) -> dict[str, int]:
    return {
        "kv_groups": sum(layer.num_kv_heads for layer in spec.layers),
        "mlp_units": sum(layer.mlp_units for layer in spec.layers),
    }


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
