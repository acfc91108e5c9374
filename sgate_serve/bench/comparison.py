"""The results of a comparison, from the times of its rounds to the record and its table.

In each round, the mean of A+A and A'+A' over B+B is one sample of the speedup of a model B over the
dense one. A and A' are two loaded copies of it, so that one that happens to be slow counts by half;
(A+A)/(A'+A') is one sample of the noise floor. Medians over rounds have bootstrap intervals.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgate_serve.bench.rounds import (
    interruption_lines,
    mean_sums,
    order_of,
    ratios,
    round_sums,
)
from sgate_serve.bench.statistics import Estimate, median_with_interval
from sgate_serve.bench.workload import AnyWorkload
from sgate_serve.environment import hardware, library_versions

DENSE, PRUNED, DENSE_AGAIN = "dense", "pruned", "dense_again"


@dataclass(frozen=True)
class Speedup:
    """The speedup of one model over the dense one in one phase: measured and ideal."""

    measured: Estimate
    ideal: float

    @property
    def efficiency(self) -> float:
        return self.measured.median / self.ideal

    def to_json(self) -> dict[str, Any]:
        return {
            "ratio": self.measured.median,
            "ci": [self.measured.low, self.measured.high],
            "ideal": self.ideal,
            "efficiency": self.efficiency,
        }


@dataclass(frozen=True)
class PhaseResult:
    """One phase: the speedup of each model over the dense one, and the noise floor."""

    speedups: Mapping[str, Speedup]
    floor: Estimate
    tokens_per_second: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """The results of all phases on one engine, with the conditions of the measurement.

    `beside` maps the names of further models to their folders, `precisions` each model to the
    precision of its matrices on the engine. `rounds` are those that were measured: all of the
    workload, unless it was interrupted.
    """

    engine: str
    dense: str
    pruned: str
    beside: Mapping[str, str]
    precisions: Mapping[str, str]
    workload: AnyWorkload
    results: Mapping[str, PhaseResult]
    rounds: int
    is_interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record: the results, and everything needed to judge or repeat them."""
        return {
            "dense": self.dense,
            "pruned": self.pruned,
            "beside_folders": dict(self.beside),
            "engine": self.engine,
            "precisions": dict(self.precisions),
            "interrupted": self.is_interrupted,
            "rounds": self.rounds,
            # The models whose mean time speedups are relative to.
            "base": [DENSE, DENSE_AGAIN],
            "speedups": {self.engine: self._speedups(PRUNED)},
            "beside": {name: self._speedups(name) for name in self.beside},
            "floor": {
                name: {"ratio": r.floor.median, "ci": [r.floor.low, r.floor.high]}
                for name, r in self.results.items()
            },
            "tokens_per_second": {
                name: {model: asdict(rate) for model, rate in r.tokens_per_second.items()}
                for name, r in self.results.items()
            },
            "workload": asdict(self.workload),
            "order": list(order_of((DENSE, PRUNED, *self.beside, DENSE_AGAIN))),
            "hardware": hardware(),
            "versions": library_versions(),
        }

    def _speedups(self, model: str) -> dict[str, Any]:
        return {name: result.speedups[model].to_json() for name, result in self.results.items()}


def comparison_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a comparison's JSON record as a table, one block per model."""
    yield from interruption_lines(record, "rounds")
    yield (
        f"{'phase':<16} {'speedup':>8} {'95% interval':>16} {'ideal':>7} {'efficiency':>11} "
        f"{'A/A floor':>10}"
    )
    blocks = speedup_rows(record)
    for model, rows in blocks.items():
        if len(blocks) > 1:
            yield f"{model}:"
        for name, *cells in rows:
            sizes = zip(cells, (8, 16, 7, 11, 10), strict=True)
            yield " ".join([f"{name:<16}", *(f"{cell:>{size}}" for cell, size in sizes)])
    yield from noise_lines(record)


def speedup_rows(record: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return for each model the rows of a table: a phase, and the figures of its speedup."""
    rows: dict[str, list[list[str]]] = {}
    for model, speedups in _blocks(record).items():
        rows[model] = []
        for name, speedup in speedups.items():
            low, high = speedup["ci"]
            cells = [f"{speedup['ratio']:.2f}x", f"{low:.2f} to {high:.2f}"]
            cells += [f"{speedup['ideal']:.2f}x", f"{speedup['efficiency']:.2f}"]
            rows[model].append([name, *cells, f"{record['floor'][name]['ratio']:.2f}x"])
    return rows


def noise_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each model that names the phases in which the run shows no difference."""
    for model, speedups in _blocks(record).items():
        covered = [name for name in speedups if _is_noise(speedups[name], record["floor"][name])]
        named = (f"{name} (floor {_floor_text(record['floor'][name])})" for name in covered)
        if covered:
            yield (
                f"{model}: this run shows no difference from {DENSE} in {', '.join(named)}: the "
                f"noise floor covers the speedup, or its interval contains 1; give more --rounds, "
                "or measure on a machine that does nothing else"
            )
    if record.get("rounds") == 1:
        yield "one round has no interval, so noise cannot be told from a difference: give more"


def _floor_text(floor: Mapping[str, Any]) -> str:
    low, high = floor.get("ci", (floor["ratio"], floor["ratio"]))
    return f"{low:.2f} to {high:.2f}"


def _blocks(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the speedups of the pruned model and of those beside it, by name."""
    # Records written before that key existed have no further models.
    return {PRUNED: record["speedups"][record["engine"]], **record.get("beside", {})}


def _is_noise(speedup: Mapping[str, Any], floor: Mapping[str, Any]) -> bool:
    """Say whether the noise floor's interval covers a speedup, or the speedup's covers 1."""
    low, high = speedup["ci"]
    # Records written before floors had intervals.
    floor_low, floor_high = floor.get("ci", (floor["ratio"], floor["ratio"]))
    return bool(low <= 1 <= high or floor_low <= speedup["ratio"] <= floor_high)


def summarise(
    seconds: Mapping[str, list[float]], ideals: Mapping[str, float], num_tokens: int, seed: int
) -> PhaseResult:
    """Turn one phase's times, two per round, into estimates for the models in `ideals`.

    The dense model's are those of both its copies.
    """
    first, second = seconds[DENSE], seconds[DENSE_AGAIN]
    base = mean_sums(first, second)
    speedups = {
        model: median_with_interval(ratios(base, round_sums(seconds[model])), seed)
        for model in ideals
    }
    rounds = {model: round_sums(seconds[model]) for model in ideals} | {DENSE: base}
    rates = {
        model: median_with_interval([2 * num_tokens / both for both in sums], seed)
        for model, sums in rounds.items()
    }
    return PhaseResult(
        speedups={model: Speedup(speedups[model], ideal) for model, ideal in ideals.items()},
        floor=median_with_interval(ratios(round_sums(first), round_sums(second)), seed),
        tokens_per_second=rates,
    )
