"""Tables of training runs: each cell is trained, converted, scored and measured once."""

import json
import math
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.command import command_line
from converters.convert import ConvertOptions, convert
from sgate_serve.bench.compare import compare
from sgate_serve.bench.workload import AnyWorkload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.demo.corpus import EVAL_FILE, TRAIN_FILE
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option
from sgate_serve.reports.evaluation import EvalOptions, evaluate
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of

SAVE_STEPS = 1000
METRICS_FILE = "metrics.json"
MASKED, VLLM = "masked", "vllm"
# The keys of metrics.json that a record keeps.
RECORDED_METRICS = (
    "method",
    "scores",
    "scores_elsewhere",
    "tokens_per_second",
    "phases",
    "parameters",
    "examples",
    "seconds",
    "removed",
    "removed_overall",
)
FIGURES = ("removed_naive", "removed_compiled", "removed_index_free", "removed_executed")


@dataclass(frozen=True)
class TableOptions:
    """Options of every table."""

    start_steps: int = option(300, "steps of the dense model that every cell starts from")
    steps: int = option(200, "steps of each cell")
    batch_size: int = option(32, "examples or blocks per step")
    seq_len: int = option(64, "tokens of an example at most, or of a block")
    seeds: str = option("0,1,2", "seeds to run, separated by commas")
    minutes: float = option(240.0, "start no cell after this many minutes")
    engines: str = option("torch,onnx", "engines that score converted models: torch, onnx or vllm")
    rounds: int = option(9, "interleaved rounds of a speed comparison; 0 skips it")


@dataclass(frozen=True)
class Cell:
    """One row of a table: training flags and seeds."""

    name: str
    flags: Mapping[str, Any]
    seeds: Sequence[int] = (0, 1, 2)


def distilled_cell(target: float) -> Cell:
    """Return the cell of Fisher masks that recover with half of the loss from the dense model."""
    flags = {"method": "fisher", "distill": 0.5, "target": target}
    return Cell(f"fisher, distilled {target:.0%}", flags)


def even_cells() -> Iterator[Cell]:
    """Yield one-seed cells of Fisher masks with the even balance."""
    for target in (0.3, 0.4):
        flags = {"method": "fisher", "balance": "even", "target": target}
        yield Cell(f"fisher, even {target:.0%}", flags, seeds=(0,))


def single_cells(variants: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
    """Yield a one-seed cell for each variant, at 30%."""
    for name, flags in variants.items():
        yield Cell(f"{name} 30%", flags, seeds=(0,))


class Table(ABC):
    """A folder of cells; finished cells are not repeated.

    `task` is the task of `sgate train`, `score` the metric of the summary.
    """

    task: str
    score: str

    def __init__(self, root: Path, cells: Sequence[Cell], options: TableOptions) -> None:
        self.root, self.cells, self.options = root, cells, options
        self.deadline = time.monotonic() + 60 * options.minutes

    @property
    @abstractmethod
    def data(self) -> Path:
        """The folder that contains train.jsonl and eval.jsonl."""

    @property
    @abstractmethod
    def workload(self) -> AnyWorkload:
        """The workload that measures the speed of a converted cell."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the data if it is missing."""

    @abstractmethod
    def start(self, seed: int) -> Path:
        """Return the dense model that the cells of a seed start from."""

    def train_options(self, base: str | Path, out: Path, seed: int, **flags: Any) -> TrainOptions:
        """Return the options of one training run; `flags` override those of the table."""
        options = TrainOptions(
            base=str(base),
            data=self.data / TRAIN_FILE,
            eval_data=(self.data / EVAL_FILE,),
            precision="fp32",
            out=out,
            task=self.task,
            batch_size=self.options.batch_size,
            seq_len=self.options.seq_len,
            steps=self.options.steps,
            seed=seed,
            save_steps=SAVE_STEPS,
        )
        options = replace(options, **flags)
        # The records compare with a dense cell of their own, and are older than the refitting and
        # than the default rank.
        return replace(
            options,
            lora_rank=flags.get("lora_rank", 16),
            no_control=options.has_control,
            no_refit=flags.get("no_refit", options.refits),
        )

    def run(self) -> list[dict[str, Any]]:
        """Train the missing cells while time is left; return the records of all cells."""
        wanted = [int(seed) for seed in self.options.seeds.split(",")]
        planned = [(cell, seed) for cell in self.cells for seed in cell.seeds if seed in wanted]
        self.prepare()
        for number, (cell, seed) in enumerate(planned):
            if time.monotonic() < self.deadline:
                print(self._estimate(planned[number:]), flush=True)
                self._run_cell(cell, seed)
        return self._records()

    def _records(self) -> list[dict[str, Any]]:
        files = sorted(self.root.glob("*/*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def _estimate(self, planned: Sequence[tuple[Cell, int]]) -> str:
        """Say how many planned cells are missing, and estimate how long they will take."""
        done = {(record["cell"], record["seed"]): record["seconds"] for record in self._records()}
        missing = sum((cell.name, seed) not in done for cell, seed in planned)
        known = "time unknown until the first is done"
        if done:
            known = f"about {missing * mean(done.values()) / 60:.0f} minutes"
        return f"{missing} cells of {self.options.steps} steps to train, {known}"

    def train(self, options: TrainOptions) -> Mapping[str, Any]:
        """Train, or continue an interrupted run; return the metrics."""
        return train(replace(options, resume=run_dir_of(options.out).exists())).metrics

    def _run_cell(self, cell: Cell, seed: int) -> None:
        file = self.root / str(seed) / f"{cell.name}.json"
        if not file.exists():
            write_record(file, self._trained(cell, seed, file.with_name(cell.name)))
        if seed == cell.seeds[0]:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["removed"]:
                self._add_converted(record, file)

    def _trained(self, cell: Cell, seed: int, out: Path) -> dict[str, Any]:
        base = self.start(seed)
        if not (out / METRICS_FILE).exists():
            self.train(self.train_options(base, out, seed, **cell.flags))
        metrics = json.loads((out / METRICS_FILE).read_text(encoding="utf-8"))
        record: dict[str, Any] = {"cell": cell.name, "seed": seed, "flags": dict(cell.flags)}
        record |= {name: metrics[name] for name in (*RECORDED_METRICS, *FIGURES)}
        print(f"{cell.name}, seed {seed}: {record['scores']['recovered']}", flush=True)
        return record

    def _add_converted(self, record: dict[str, Any], file: Path) -> None:
        """Score the masked and the converted model on every engine and measure the speed, once."""
        scores = record.setdefault("converted", {})
        engines = [MASKED, *self.options.engines.split(",")]
        missing = [engine for engine in engines if engine not in scores]
        unmeasured = bool(self.options.rounds) and "speed" not in record
        if not (missing or unmeasured):
            return
        base, gates = self.start(record["seed"]), file.with_name(record["cell"])
        pruned = gates.with_name(f"{gates.name} pruned")
        if not pruned.exists():
            convert(ConvertOptions(str(base), pruned, gates, to=("hf", "onnx")))
        for engine in missing:
            model, mask = (base, gates) if engine == MASKED else (pruned, None)
            scores[engine] = self._scores(model, mask, engine)
            write_record(file, record)
        if unmeasured:
            speed = compare(Checkpoint.open(base), Checkpoint.open(pruned), "onnx", self.workload)
            named = {"dense": base.name, "pruned": pruned.name}
            write_record(file, record | {"speed": speed.to_json() | named})

    def _scores(self, model: Path, gates: Path | None, engine: str) -> dict[str, float]:
        data, seq_len = self.data / EVAL_FILE, self.options.seq_len
        if engine == VLLM:
            # In its own process, because vLLM changes torch for everything that runs after it.
            command = f"-m sgate_serve.cli eval --engine {VLLM} --seq-len {seq_len} --json --data"
            arguments = [sys.executable, *command.split(), str(data), str(model)]
            output = subprocess.check_output(arguments, text=True)
            values = json.loads(output[output.index("{") :])["scores"]
            return {name: value["value"] for name, value in values.items()}
        runs_on = "torch" if engine == MASKED else engine
        of = EvalOptions(str(model), data, gates, engine=runs_on, seq_len=seq_len)
        return {name: value.value for name, value in evaluate(of).scores.items()}


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_of(table: Table, script: str, shown: TableOptions) -> dict[str, Any]:
    """Run a table and return its record; `shown` are the options without local paths."""
    records = table.run()
    shown = replace(shown, minutes=TableOptions.minutes)  # does not affect any cell
    return {
        "command": command_line(script, shown),
        "options": asdict(shown),
        "summary": summary(records, table.score),
        "cells": records,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def summary(records: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    """Return cell → mean score over seeds, its standard error, and the change against dense.

    The standard error comes from the spread over the seeds; with one seed it is that of the
    held-out sample. The change against dense is computed seed by seed, from the same start; with
    several seeds its standard error is that of these changes.
    """
    by_cell: dict[str, dict[int, Mapping[str, float]]] = defaultdict(dict)
    for record in records:
        by_cell[record["cell"]][record["seed"]] = record["scores"]["recovered"][score]
    dense = by_cell.get("dense", {})
    table = {}
    for name, scores in by_cell.items():
        values = [score["value"] for score in scores.values()]
        own = [score["standard_error"] for score in scores.values()]
        paired = [scores[seed]["value"] - dense[seed]["value"] for seed in scores if seed in dense]
        table[name] = {
            score: mean(values),
            "standard_error": _standard_error(values, own),
            "against_dense": mean(paired) if paired else None,
            "against_dense_standard_error": _spread(paired),
            "seeds": sorted(scores),
        }
    return table


def _standard_error(values: Sequence[float], own: Sequence[float]) -> float:
    spread = _spread(values)
    return own[0] if spread is None else spread


def _spread(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, or None for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
