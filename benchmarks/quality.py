"""Accuracy cost of pruning a real encoder: all methods with equal steps from one dense start.

`python -m benchmarks.quality --base MINILM --dir DIR --json FILE` fine-tunes a classifier with LoRA
once per seed, then finds masks by every method, recovers, and scores held-out files. It prints a
time estimate first. Finished cells are kept, so a run can be stopped and continued; `--minutes`
stops it automatically. After the dense start every method gets the same number of optimiser steps;
trained gates spend half of them on the gates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import run_script
from benchmarks.quality_cells import (
    METRICS_FILE,
    Cell,
    Table,
    TableOptions,
    distilled_cell,
    even_cells,
    record_of,
    single_cells,
)
from benchmarks.stdlib_tasks import TaskOptions, write_tasks
from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.bench.workload import PoolingWorkload
from sgate_serve.environment import num_cpus
from sgate_serve.options import option

DENSE_START = "dense start"


@dataclass(frozen=True)
class QualityOptions(TableOptions):
    """The model, the task, and the training of each cell."""

    base: str = option("", "folder of the encoder")
    task: str = option("packages", "packages or docstrings")
    dir: str = option("quality", "working folder; a started one is continued")
    start_steps: int = option(300, "steps of dense LoRA that every cell starts from")


SINGLE: Mapping[str, Mapping[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "gates, distilled": {"method": "gates", "distill": 0.5},
    "gates, hard-concrete": {"method": "gates", "relaxation": "hard-concrete"},
    "gates, alone": {"method": "gates", "gates_with": "none"},
    "row-col beside LoRA": {"method": "gates", "gates": "row-col", "gates_with": "lora"},
    "row-col, kurtosis": {"method": "gates", "gates": "row-col", "kurtosis": True},
    "fisher, biases": {"method": "fisher", "recovery": "bias"},
    "fisher, all weights": {"method": "fisher", "recovery": "full"},
    "fisher, head only": {"method": "fisher", "recovery": "head"},
}


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first, as a run may be stopped early."""
    yield Cell("dense", {"method": "dense"})
    for target in (0.3, 0.4, 0.2):
        for method in ("fisher", "wanda"):
            yield Cell(f"{method} {target:.0%}", {"method": method, "target": target})
        yield distilled_cell(target)
        yield Cell(f"fisher, refitted {target:.0%}", {"target": target, "no_refit": False})
    yield Cell("gates 30%", {"method": "gates"})
    yield Cell("random 30%", {"method": "random"})
    yield Cell("row-col 30%", {"method": "gates", "gates": "row-col"})
    yield from even_cells()
    for target in (0.4, 0.2):
        yield Cell(f"gates {target:.0%}", {"method": "gates", "target": target}, seeds=(0,))
    yield from single_cells(SINGLE)


class ClassifierTable(Table):
    """The table of a classifier; every seed has its own dense LoRA start."""

    task, score = CLASSIFICATION, "accuracy"

    def __init__(self, options: QualityOptions) -> None:
        super().__init__(Path(options.dir) / options.task, list(cells()), options)
        self.own = options

    @property
    def data(self) -> Path:
        return Path(self.own.dir) / "tasks" / self.own.task

    @property
    def workload(self) -> PoolingWorkload:
        return PoolingWorkload(
            rounds=self.own.rounds, prefill_tokens=self.own.seq_len, threads=num_cpus()
        )

    def base(self) -> Path:
        """Return the folder of the model without a head."""
        return Path(self.own.base)

    def prepare(self) -> None:
        tasks = Path(self.own.dir) / "tasks"
        if not tasks.exists():
            write_tasks(TaskOptions(dir=tasks))

    def start(self, seed: int) -> Path:
        """Return the dense model of a seed; it is trained once."""
        out = self.root / str(seed) / DENSE_START
        if not (out / METRICS_FILE).exists():
            flags = {"method": "dense", "recovery": "none", "dense_steps": self.own.start_steps}
            self.train(self.train_options(self.base(), out, seed, **flags))
        return out / "base"


def run(options: QualityOptions) -> dict[str, Any]:
    shown = replace(options, base=Path(options.base).name, dir="")
    return record_of(ClassifierTable(options), "quality", shown)


def main() -> None:
    run_script("quality", __doc__, QualityOptions, run)


if __name__ == "__main__":
    main()
