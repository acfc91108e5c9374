"""`sgate bench compare`: dense and pruned models interleaved in one run.

Each round times every phase in the order A B A' A' B A: A is the dense model, B the pruned one, A'
the dense model loaded a second time. All three have the same mean position, so slow drift of the
machine cancels. Per round, (A+A)/(B+B) is one sample of the speedup and (A+A)/(A'+A') one of the
noise floor; medians over rounds carry bootstrap intervals.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from sgate_serve.bench.ideal import ideal_speedup
from sgate_serve.bench.statistics import Estimate, median_with_interval
from sgate_serve.bench.workload import (
    BATCHES,
    PREFILL,
    Measure,
    Workload,
    phases,
    tokens_per_run,
)
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.engines.scheduler import Runner, SlotOptions
from sgate_serve.environment import hardware, library_versions
from sgate_serve.errors import EngineError
from sgate_serve.prepare import load_slot_engine

DENSE, PRUNED, DENSE_AGAIN = "dense", "pruned", "dense_again"
ORDER = (DENSE, PRUNED, DENSE_AGAIN, DENSE_AGAIN, PRUNED, DENSE)

# The threads of the model before spin for 2 ms after its run (engines/onnx_runner.py). Without the
# pause they made a small dense model up to 1.3 times as fast or slow as itself.
SETTLE_SECONDS = 0.01

Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class PhaseResult:
    """One phase: measured speedup, its interval, the ideal, and the noise of the measurement."""

    speedup: Estimate
    floor: Estimate
    ideal: float
    tokens_per_second: Mapping[str, Estimate]

    @property
    def efficiency(self) -> float:
        return self.speedup.median / self.ideal


@dataclass(frozen=True)
class Comparison:
    """All phases of one engine, with what they were measured with."""

    engine: str
    dense: str
    pruned: str
    workload: Workload
    results: Mapping[str, PhaseResult]

    def to_json(self) -> dict[str, Any]:
        """Return the record: DESIGN's report keys, and all that is needed to judge or repeat it."""
        return {
            "dense": self.dense,
            "pruned": self.pruned,
            "engine": self.engine,
            "speedups": {self.engine: {name: _speedup(r) for name, r in self.results.items()}},
            "floor": {
                name: {"ratio": r.floor.median, "ci": [r.floor.low, r.floor.high]}
                for name, r in self.results.items()
            },
            "tokens_per_second": {
                name: {model: asdict(rate) for model, rate in r.tokens_per_second.items()}
                for name, r in self.results.items()
            },
            "workload": asdict(self.workload),
            "order": list(ORDER),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def comparison_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of a comparison's JSON record for a person."""
    yield (
        f"{'phase':<16} {'speedup':>8} {'95% interval':>16} {'ideal':>7} {'efficiency':>11} "
        f"{'A/A floor':>10}"
    )
    for name, speedup in record["speedups"][record["engine"]].items():
        low, high = speedup["ci"]
        yield (
            f"{name:<16} {speedup['ratio']:>7.2f}x {f'{low:.2f} to {high:.2f}':>16} "
            f"{speedup['ideal']:>6.2f}x {speedup['efficiency']:>11.2f} "
            f"{record['floor'][name]['ratio']:>9.2f}x"
        )


def compare(dense: Checkpoint, pruned: Checkpoint, engine: str, workload: Workload) -> Comparison:
    """Load dense, pruned and dense again, and measure every phase in interleaved rounds.

    Raises SgateError if a model cannot be loaded or is too short for the workload.
    """
    ideal = ideal_speedup(dense.spec, pruned.spec, workload.prefill_tokens)
    for model in (dense, pruned):
        if model.spec.max_positions < workload.model_len:
            raise EngineError(
                f"{model.folder} holds {model.spec.max_positions} positions, the workload needs "
                f"{workload.model_len}; lower --prefill-tokens or --decode-steps"
            )
    runners = {
        DENSE: _load(dense, engine, workload),
        PRUNED: _load(pruned, engine, workload),
        DENSE_AGAIN: _load(dense, engine, workload),
    }
    times = measure_rounds(phases(workload), runners, workload.rounds)
    results = {}
    for name, by_model in times.items():
        expected = ideal.prefill if name == PREFILL else ideal.decode
        results[name] = summarise(by_model, expected, tokens_per_run(workload, name), workload.seed)
    return Comparison(engine, str(dense.folder), str(pruned.folder), workload, results)


def measure_rounds(
    measures: Mapping[str, Measure], runners: Mapping[str, Runner], rounds: int
) -> Times:
    """Time every phase on every runner; return phase → model → seconds, two values a round.

    One unrecorded round first warms caches, buffers and clocks.
    """
    times: Times = {name: {model: [] for model in runners} for name in measures}
    total = (rounds + 1) * len(measures) * len(ORDER)
    with tqdm(total=total, desc="measuring", unit="run", disable=None) as bar:
        for number in range(rounds + 1):
            for name, measure in measures.items():
                for model in ORDER:
                    time.sleep(SETTLE_SECONDS)
                    seconds = measure(runners[model])
                    if number:
                        times[name][model].append(seconds)
                    bar.update()
    return times


def summarise(
    seconds: Mapping[str, list[float]], ideal: float, num_tokens: int, seed: int
) -> PhaseResult:
    """Turn one phase's times into estimates; times of a model are two a round, in order."""
    rounds = {model: _pair_sums(values) for model, values in seconds.items()}
    dense = rounds[DENSE]
    rates = {
        model: median_with_interval([num_tokens / value for value in seconds[model]], seed)
        for model in (DENSE, PRUNED)
    }
    return PhaseResult(
        speedup=median_with_interval(_ratios(dense, rounds[PRUNED]), seed),
        floor=median_with_interval(_ratios(dense, rounds[DENSE_AGAIN]), seed),
        ideal=ideal,
        tokens_per_second=rates,
    )


def _load(model: Checkpoint, engine: str, workload: Workload) -> Runner:
    options = SlotOptions(max(BATCHES), workload.model_len, workload.threads)
    return load_slot_engine(engine, model, options).runner


def _pair_sums(values: list[float]) -> list[float]:
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)]


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _speedup(result: PhaseResult) -> dict[str, Any]:
    return {
        "ratio": result.speedup.median,
        "ci": [result.speedup.low, result.speedup.high],
        "ideal": result.ideal,
        "efficiency": result.efficiency,
    }
