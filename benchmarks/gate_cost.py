"""Time and memory that training gates adds to a LoRA step.

`python -m benchmarks.gate_cost --base MODEL --data FILE --task TASK --json FILE` runs steps of
LoRA, of gates alone and of gates with LoRA. Each variant runs in its own process, in turns.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.footprint import memory_of
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option

LORA_STEP, GATES_ALONE, GATES_WITH_LORA = "LoRA", "gates alone", "gates beside LoRA"
VARIANTS = (LORA_STEP, GATES_ALONE, GATES_WITH_LORA)
# That of the record.
LORA_RANK = 16
WARM_UP = 2


@dataclass(frozen=True)
class CostOptions:
    """The model, its data, and the amount of measuring."""

    base: str = option("", "model folder")
    data: str = option("", "training data")
    task: str = option("causal-lm", "causal-lm or classification")
    batch_size: int = option(8, "blocks or examples per step")
    seq_len: int = option(128, "tokens of a block, or of an example at most")
    steps: int = option(12, "steps of each variant in a round; the first two are not counted")
    rounds: int = option(5, "rounds, in which every variant runs once")


def run(options: CostOptions) -> dict[str, Any]:
    """Return the record: seconds per step and memory growth of each variant, and their ratios."""
    spawn = multiprocessing.get_context("spawn")
    measured: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "bytes": []} for name in VARIANTS
    }
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for round_index in range(options.rounds):
            for name in VARIANTS:
                seconds, grown = processes.submit(measure, options, name).result()
                measured[name]["seconds"].append(seconds)
                measured[name]["bytes"].append(grown)
                print(f"round {round_index + 1}, {name}: {seconds:.3f} s, {grown:,} bytes")
    shown = replace(options, base=Path(options.base).name, data=Path(options.data).name)
    return {
        "command": command_line("gate_cost", shown),
        "options": asdict(shown),
        "measured": measured,
        "over_lora": {
            name: {unit: _over_lora(measured, name, unit) for unit in ("seconds", "bytes")}
            for name in VARIANTS[1:]
        },
        "hardware": hardware(),
        "versions": library_versions(),
    }


def _over_lora(
    measured: dict[str, dict[str, list[float]]], name: str, unit: str
) -> dict[str, float]:
    """Return the median, least and largest ratio of a variant to LoRA over the rounds."""
    pairs = zip(measured[name][unit], measured[LORA_STEP][unit], strict=True)
    ratios = [own / lora for own, lora in pairs]
    return {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def measure(options: CostOptions, variant: str) -> tuple[float, int]:
    """Return the median seconds of a step, and the growth of the process in bytes."""
    from transformers.trainer import DEFAULT_CALLBACKS
    from transformers.trainer_callback import TrainerCallback

    ends: list[float] = []

    class StepTimes(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    DEFAULT_CALLBACKS.append(StepTimes)
    with tempfile.TemporaryDirectory() as folder:
        grown = _train(options, variant, Path(folder))
    pairs = zip(ends[WARM_UP:], ends[WARM_UP - 1 :], strict=False)
    return statistics.median(end - start for end, start in pairs), grown


def _train(options: CostOptions, variant: str, folder: Path) -> int:
    from sgate_serve.checkpoint.reader import Checkpoint
    from sgate_serve.training.masks.removal_target import WeightTarget
    from sgate_serve.training.methods import find_gates
    from sgate_serve.training.phases.recovery import recover
    from sgate_serve.training.phases.trainer import Phase
    from sgate_serve.training.phases.tuning import Tuning
    from sgate_serve.training.tasks.training_task import TASKS
    from sgate_serve.training.train_options import DENSE, GATES, LORA, NONE, TrainOptions

    training = TrainOptions(
        base=options.base,
        data=Path(options.data),
        out=folder / "gates",
        task=options.task,
        method=DENSE if variant == LORA_STEP else GATES,
        gates_with=LORA if variant == GATES_WITH_LORA else NONE,
        steps=options.steps,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        lora_rank=LORA_RANK,
        precision="fp32",
    )
    base = Checkpoint.open(options.base)
    task = TASKS[options.task](base, training)
    model = task.open_model(base)
    phase = Phase.of(training, folder / "work", options.steps, training.rate_of(LORA))
    before = memory_of(os.getpid())["rss_bytes"]
    if variant == LORA_STEP:
        recover(model, base.spec, {}, Tuning(LORA, LORA_RANK, 0), task.data, phase)
    else:
        find_gates(model, base, task.data, WeightTarget(training.weight_target), training, phase)
    return int(memory_of(os.getpid())["peak_rss_bytes"] - before)


def main() -> None:
    run_script("gate_cost", __doc__, CostOptions, run)


if __name__ == "__main__":
    main()
