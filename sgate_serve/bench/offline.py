"""`sgate bench throughput` and `sgate bench latency`: batches of requests, without a server.

Both time a batch of requests of equal lengths, from its arrival to its last token: throughput one
that is longer than what runs at a time, latency one that runs at once. Several models are
interleaved as in `sgate bench compare`, with the first one loaded twice: speedups are over the mean
of both copies, and one copy over the other is the noise floor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sgate_serve.bench.compare import check_fits, loaded
from sgate_serve.bench.offline_workload import OfflineWorkload, ThroughputWorkload
from sgate_serve.bench.rounds import (
    Times,
    interruption_lines,
    mean_sums,
    measure_rounds,
    num_whole_rounds,
    ratios,
    round_sums,
    whole_rounds,
)
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.bench.text_table import table_lines
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedDecoder
from sgate_serve.environment import hardware, library_versions
from sgate_serve.errors import EngineError

# Of latencies, as `vllm bench latency` reports them.
PERCENTILES = (10, 25, 50, 75, 90, 99)
BATCH = "batch"
AGAIN = " again"


@dataclass
class OfflineRun:
    """The measurement of a workload, whose `times` grow, so that an interrupted one has a record.

    Raises SgateError for a model that is given twice, or is too short.
    """

    models: Sequence[Checkpoint]
    engine: str
    workload: OfflineWorkload
    times: Times = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.named) < len(self.models):
            raise EngineError("a model is given twice; the first one is measured twice in any case")
        for model in self.models:
            check_fits(model, self.workload)

    @property
    def named(self) -> Mapping[str, Checkpoint]:
        return {str(model.folder): model for model in self.models}

    @property
    def second_copy(self) -> str:
        """The name under which the first model is measured again, beside others."""
        return f"{self.models[0].folder}{AGAIN}"

    @property
    def rounds(self) -> int:
        """The whole rounds that were measured."""
        return num_whole_rounds(self.times)

    def measure(self) -> None:
        """Load the models and time the workload on them; raises SgateError if one cannot be."""
        named, workload = self.named, self.workload
        again = {self.second_copy: self.models[0]} if len(named) > 1 else {}
        generator = np.random.default_rng(workload.seed)

        def measure(timed: TimedDecoder) -> float:
            return timed.generate_seconds(
                workload.num_requests, workload.input_len, workload.output_len, generator
            )

        with loaded({**named, **again}, self.engine, workload) as timed:
            self.precisions = {name: timed[name].precision.name for name in named}
            measure_rounds({BATCH: measure}, timed, workload.num_iters, self.times)

    def record(self, *, is_interrupted: bool = False) -> dict[str, Any]:
        """Return the record of the whole rounds, of which there must be one, as a JSON object."""
        seconds, workload = whole_rounds(self.times)[BATCH], self.workload
        first, *others = self.named
        again = seconds.pop(self.second_copy, [])
        sums, floor = {name: round_sums(values) for name, values in seconds.items()}, None
        if others:
            floor = _over(sums[first], round_sums(again), workload.seed)
            sums[first] = mean_sums(seconds[first], again)
        base = sums[first]
        is_throughput = isinstance(workload, ThroughputWorkload)
        models = {
            name: {
                "precision": self.precisions[name],
                **(_rates(values, sums[name], workload) if is_throughput else _latencies(values)),
                **(_over(base, sums[name], workload.seed) if name in others else {}),
            }
            for name, values in {**seconds, first: seconds[first] + again}.items()
        }
        return {
            "engine": self.engine,
            "interrupted": is_interrupted,
            "rounds": self.rounds,
            "models": models,
            "floor": floor,
            "workload": {"kind": "throughput" if is_throughput else "latency", **asdict(workload)},
            "hardware": hardware(),
            "versions": library_versions(),
        }


def _rates(
    seconds: Sequence[float], sums: Sequence[float], workload: OfflineWorkload
) -> dict[str, Any]:
    """Return medians of rates with 95% intervals, from the sum of the two runs of each round.

    Tokens are counted as `vllm bench` does.
    """
    per_batch = {
        "requests_per_second": workload.num_requests,
        "output_tokens_per_second": workload.num_requests * workload.output_len,
        "total_tokens_per_second": workload.num_requests * workload.model_len,
    }
    return {
        "elapsed_times": list(seconds),
        **{
            name: asdict(median_with_interval([2 * count / both for both in sums], workload.seed))
            for name, count in per_batch.items()
        },
    }


def _latencies(seconds: Sequence[float]) -> dict[str, Any]:
    """Return the figures of `vllm bench latency`, in seconds."""
    found = np.percentile(seconds, PERCENTILES).tolist()
    return {
        "latencies": list(seconds),
        "avg_latency": float(np.mean(seconds)),
        "percentiles": dict(zip(map(str, PERCENTILES), found, strict=True)),
    }


def _over(base: list[float], own: list[float], seed: int) -> dict[str, dict[str, float]]:
    """Return how much faster a model is, from the ratios of the rounds of `base` to its own."""
    return {"speedup": asdict(median_with_interval(ratios(base, own), seed))}


def offline_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a record as a table with a row for each model, the noise floor last."""
    workload, models = record["workload"], record["models"]
    is_throughput = workload["kind"] == "throughput"
    if is_throughput:
        running = f"{workload['num_prompts']} requests, {workload['max_num_seqs']} at a time"
        columns = ["requests/s", "output tokens/s", "total tokens/s"]
    else:
        running = f"{workload['batch_size']} requests at once"
        columns = ["mean s", "median s", "p90 s", "p99 s"]
    yield from interruption_lines(record, "num_iters")
    yield (
        f"{record['engine']}: {running}, {workload['input_len']} + {workload['output_len']} "
        f"tokens each, {2 * record['rounds']} runs of each loaded model"
    )
    cells = _rate_cells if is_throughput else _latency_cells
    rows = [[name, *cells(figures), *_speedup_cells(figures)] for name, figures in models.items()]
    if record["floor"] is not None:
        blank = [""] * len(columns)
        rows.append([f"{next(iter(models))}{AGAIN}", *blank, *_speedup_cells(record["floor"])])
        columns += ["speedup", "95% interval"]
    yield from table_lines([["model", *columns], *rows])


def _rate_cells(figures: Mapping[str, Any]) -> list[str]:
    rates = [figures[name]["median"] for name in figures if name.endswith("_per_second")]
    return [f"{rates[0]:.2f}", *(f"{rate:,.0f}" for rate in rates[1:])]


def _latency_cells(figures: Mapping[str, Any]) -> list[str]:
    parts = figures["percentiles"]
    values = (figures["avg_latency"], parts["50"], parts["90"], parts["99"])
    return [f"{value:.3f}" for value in values]


def _speedup_cells(figures: Mapping[str, Any]) -> list[str]:
    if "speedup" not in figures:
        return []
    found = figures["speedup"]
    return [f"{found['median']:.2f}x", f"{found['low']:.2f} to {found['high']:.2f}"]
