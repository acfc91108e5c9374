"""`sgate bench compare`: dense and pruned models interleaved in one run.

Each round times every phase in the order A B C A' A' C B A: A is the dense model, B the pruned one,
C any further models, A' the dense model loaded a second time. All have the same mean position, so
slow drift of the machine cancels. In each round, (A+A)/(B+B) is one sample of the speedup and
(A+A)/(A'+A') one of the noise floor; medians over rounds have bootstrap intervals.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from sgate_serve.bench.ideal import ideal_speedup
from sgate_serve.bench.statistics import Estimate, median_with_interval
from sgate_serve.bench.workload import (
    AnyWorkload,
    Measure,
    PoolingWorkload,
    SizedWorkload,
    phases,
    tokens_per_run,
)
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedModel
from sgate_serve.environment import hardware, library_versions
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import check_generative, check_pooling_model
from sgate_serve.loaders.timing import load_timed, load_timed_pooling
from sgate_serve.progress import activity, counted

DENSE, PRUNED, DENSE_AGAIN = "dense", "pruned", "dense_again"
DECODE = "decode"
OWN_NAMES = (DENSE, PRUNED, DENSE_AGAIN)
NOTHING: Mapping[str, Checkpoint] = MappingProxyType({})

# The threads of the previous model spin for 2 ms after its run (engines/onnx/runner.py). Without a
# pause, a small dense model measured up to 1.3 times as fast or as slow as itself.
SETTLE_SECONDS = 0.01

Times = dict[str, dict[str, list[float]]]


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
    precision of its matrices on the engine.
    """

    engine: str
    dense: str
    pruned: str
    beside: Mapping[str, str]
    precisions: Mapping[str, str]
    workload: AnyWorkload
    results: Mapping[str, PhaseResult]

    def to_json(self) -> dict[str, Any]:
        """Return the record: the results, and everything needed to judge or repeat them."""
        return {
            "dense": self.dense,
            "pruned": self.pruned,
            "beside_folders": dict(self.beside),
            "engine": self.engine,
            "precisions": dict(self.precisions),
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
    yield (
        f"{'phase':<16} {'speedup':>8} {'95% interval':>16} {'ideal':>7} {'efficiency':>11} "
        f"{'A/A floor':>10}"
    )
    # Records written before this key existed have no further models.
    beside = record.get("beside", {})
    blocks = {PRUNED: record["speedups"][record["engine"]], **beside}
    for model, speedups in blocks.items():
        if beside:
            yield f"{model}:"
        for name, speedup in speedups.items():
            low, high = speedup["ci"]
            yield (
                f"{name:<16} {speedup['ratio']:>7.2f}x {f'{low:.2f} to {high:.2f}':>16} "
                f"{speedup['ideal']:>6.2f}x {speedup['efficiency']:>11.2f} "
                f"{record['floor'][name]['ratio']:>9.2f}x"
            )
    for model, speedups in blocks.items():
        covered = [name for name in speedups if _is_noise(speedups[name], record["floor"][name])]
        if covered:
            yield (
                f"{model}: this run shows no difference from {DENSE} in {', '.join(covered)}: the "
                f"noise floor covers the speedup, or its interval contains 1; give more --rounds, "
                "or measure on a machine that does nothing else"
            )


def _is_noise(speedup: Mapping[str, Any], floor: Mapping[str, Any]) -> bool:
    """Say whether the noise floor's interval covers a speedup, or the speedup's covers 1."""
    low, high = speedup["ci"]
    # Records written before floors had intervals.
    floor_low, floor_high = floor.get("ci", (floor["ratio"], floor["ratio"]))
    return bool(low <= 1 <= high or floor_low <= speedup["ratio"] <= floor_high)


def compare(
    dense: Checkpoint,
    pruned: Checkpoint,
    engine: str,
    workload: AnyWorkload,
    beside: Mapping[str, Checkpoint] = NOTHING,
) -> Comparison:
    """Load dense, pruned, those in `beside` and dense again; measure every phase interleaved.

    Each model in `beside` gets its own speedup over dense, under its name. Raises SgateError if a
    model cannot be loaded, is too short for the workload or of another kind, and for a name that is
    already taken.
    """
    taken = next((name for name in beside if name in OWN_NAMES), None)
    if taken is not None:
        raise EngineError(f"--beside {taken}: the comparison already has a model of that name")
    models = {DENSE: dense, PRUNED: pruned, **beside}
    for model in models.values():
        check_fits(model, workload)
    with loaded({**models, DENSE_AGAIN: dense}, engine, workload) as timed:
        times = measure_rounds(phases(workload), timed, workload.rounds)
        precisions = {name: timed[name].precision for name in models}
    ideals = {
        name: ideal_speedup(
            dense.spec, model.spec, workload.prefill_tokens, (precisions[DENSE], precisions[name])
        )
        for name, model in models.items()
        if name != DENSE
    }
    results = {}
    for phase, seconds in times.items():
        expected = {
            name: ideal.decode if phase.startswith(DECODE) else ideal.prefill
            for name, ideal in ideals.items()
        }
        num_tokens = tokens_per_run(workload, phase)
        results[phase] = summarise(seconds, expected, num_tokens, workload.seed)
    return Comparison(
        engine=engine,
        dense=str(dense.folder),
        pruned=str(pruned.folder),
        beside={name: str(model.folder) for name, model in beside.items()},
        precisions={name: precision.name for name, precision in precisions.items()},
        workload=workload,
        results=results,
    )


def check_fits(model: Checkpoint, workload: SizedWorkload) -> None:
    """Raise EngineError for a model of another kind than the workload's, or too short for it."""
    check = check_pooling_model if isinstance(workload, PoolingWorkload) else check_generative
    check(model)
    if model.spec.max_positions < workload.model_len:
        raise EngineError(
            f"{model.folder} holds {model.spec.max_positions} positions, the workload needs "
            f"{workload.model_len}; lower {workload.length_flags}"
        )


@contextmanager
def loaded(
    models: Mapping[str, Checkpoint], engine: str, workload: SizedWorkload
) -> Iterator[Mapping[str, TimedModel]]:
    """Load the models in order; close all of them when the context ends, also on an error."""
    with ExitStack() as stack:
        timed: dict[str, TimedModel] = {}
        for name, model in models.items():
            load = load_timed_pooling if isinstance(workload, PoolingWorkload) else load_timed
            timed[name] = load(engine, model, workload.sizes, workload.engine_arguments)
            stack.callback(timed[name].close)
            if timed[name].max_model_len < workload.model_len:
                raise EngineError(
                    f"{model.folder}: engine {engine} was loaded with {timed[name].max_model_len} "
                    f"positions, the workload needs {workload.model_len}; change the arguments "
                    "after `--`"
                )
        yield timed


def order_of(models: Iterable[str]) -> tuple[str, ...]:
    """Return the order of a round: all models forwards, then backwards."""
    forwards = tuple(models)
    return forwards + forwards[::-1]


def measure_rounds(
    measures: Mapping[str, Measure],
    models: Mapping[str, Any],
    rounds: int,
    name_shown: str = "measuring",
) -> Times:
    """Time every phase on every model; return phase → model → seconds, two values per round.

    An unrecorded first round warms up caches, buffers and clocks. Progress is under `name_shown`.
    """
    times: Times = {name: {model: [] for model in models} for name in measures}
    order = order_of(models)
    runs = list(product(range(rounds + 1), measures.items(), order))
    with activity(name_shown, is_brief=True):
        for number, (name, measure), model in counted(runs, "run"):
            time.sleep(SETTLE_SECONDS)
            seconds = measure(models[model])
            if number:
                times[name][model].append(seconds)
    return times


def summarise(
    seconds: Mapping[str, list[float]], ideals: Mapping[str, float], num_tokens: int, seed: int
) -> PhaseResult:
    """Turn one phase's times, two per round, into estimates for the models in `ideals`."""
    rounds = {model: round_sums(values) for model, values in seconds.items()}
    over_dense = {
        model: median_with_interval(ratios(rounds[DENSE], rounds[model]), seed)
        for model in (*ideals, DENSE_AGAIN)
    }
    rates = {
        model: median_with_interval([num_tokens / value for value in seconds[model]], seed)
        for model in (DENSE, *ideals)
    }
    return PhaseResult(
        speedups={model: Speedup(over_dense[model], ideal) for model, ideal in ideals.items()},
        floor=over_dense[DENSE_AGAIN],
        tokens_per_second=rates,
    )


def round_sums(values: list[float]) -> list[float]:
    """Return the sum of each round's two values."""
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)]


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the elementwise ratios of `above` to `below`."""
    return [a / b for a, b in zip(above, below, strict=True)]
