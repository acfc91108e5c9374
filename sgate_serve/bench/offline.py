"""`sgate bench throughput` and `sgate bench latency`: batches of requests, without a server.

Both time a batch of requests of equal lengths, from its arrival to its last token: throughput one
that is longer than what runs at a time, latency one that runs at once. Several models are
interleaved as in `sgate bench compare`, with the first one loaded twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from sgate_serve.bench.compare import check_fits, loaded, measure_rounds, ratios, round_sums
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.bench.text_table import table_lines
from sgate_serve.bench.workload import check_counts
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedDecoder, TimedSizes
from sgate_serve.environment import hardware, library_versions
from sgate_serve.errors import EngineError
from sgate_serve.options import option

# Of latencies, as `vllm bench latency` reports them.
PERCENTILES = (10, 25, 50, 75, 90, 99)
BATCH = "batch"
AGAIN = " again"


@dataclass(frozen=True)
class RequestLengths:
    """The lengths of all requests, in tokens; fields have the names that `vllm bench` gives them.

    Token ids are random, drawn with `seed`; `engine_arguments` are command-line words for the
    engine. Raises EngineError for sizes that cannot be run.
    """

    input_len: int = option(128, "tokens of each prompt")
    output_len: int = option(64, "tokens that each request generates")
    num_iters: int = option(5, "rounds, in each of which every model runs twice")
    threads: int | None = option(None, "threads of the engine (default: all CPUs)")
    seed: int = option(0, "seed of the token ids and of the confidence intervals")
    engine_arguments: tuple[str, ...] = ()

    length_flags: ClassVar[str] = "--input-len or --output-len"
    counts: ClassVar[tuple[str, ...]] = ("input_len", "output_len", "num_iters")

    def __post_init__(self) -> None:
        check_counts(self, self.counts)

    @property
    def model_len(self) -> int:
        return self.input_len + self.output_len


@dataclass(frozen=True)
class ThroughputWorkload(RequestLengths):
    """A queue of requests, of which at most `max_num_seqs` run at a time."""

    num_prompts: int = option(64, "requests in the queue")
    max_num_seqs: int = option(16, "requests that run at a time, at most")

    counts: ClassVar[tuple[str, ...]] = (*RequestLengths.counts, "num_prompts", "max_num_seqs")

    @property
    def num_requests(self) -> int:
        return self.num_prompts

    @property
    def sizes(self) -> TimedSizes:
        return TimedSizes(min(self.max_num_seqs, self.num_prompts), self.model_len, self.threads)


@dataclass(frozen=True)
class LatencyWorkload(RequestLengths):
    """A batch of requests that arrive and run together."""

    batch_size: int = option(8, "requests in the batch")

    counts: ClassVar[tuple[str, ...]] = (*RequestLengths.counts, "batch_size")

    @property
    def num_requests(self) -> int:
        return self.batch_size

    @property
    def sizes(self) -> TimedSizes:
        return TimedSizes(self.batch_size, self.model_len, self.threads)


OfflineWorkload = ThroughputWorkload | LatencyWorkload


def measure_offline(
    models: Sequence[Checkpoint], engine: str, workload: OfflineWorkload
) -> dict[str, Any]:
    """Time the workload on every model; return the record, a JSON object.

    Raises SgateError for a model that is given twice, cannot be loaded, or is too short.
    """
    named = {str(model.folder): model for model in models}
    if len(named) < len(models):
        raise EngineError("a model is given twice; the first one is measured twice in any case")
    for model in models:
        check_fits(model, workload)
    first = next(iter(named))
    floor = {f"{first}{AGAIN}": named[first]} if len(named) > 1 else {}
    generator = np.random.default_rng(workload.seed)

    def measure(timed: TimedDecoder) -> float:
        return timed.generate_seconds(
            workload.num_requests, workload.input_len, workload.output_len, generator
        )

    with loaded({**named, **floor}, engine, workload) as timed:
        seconds = measure_rounds({BATCH: measure}, timed, workload.num_iters)[BATCH]
        precisions = {name: timed[name].precision.name for name in named}
    is_throughput = isinstance(workload, ThroughputWorkload)
    figures = {
        name: {
            "precision": precisions.get(name, precisions[first]),
            **(_rates(values, workload) if is_throughput else _latencies(values)),
            **_over(seconds[first], values, workload.seed, is_first=name == first),
        }
        for name, values in seconds.items()
    }
    return {
        "engine": engine,
        "models": {name: figures[name] for name in named},
        "floor": next((figures[name] for name in floor), None),
        "workload": {"kind": "throughput" if is_throughput else "latency", **asdict(workload)},
        "hardware": hardware(),
        "versions": library_versions(),
    }


def _rates(seconds: Sequence[float], workload: OfflineWorkload) -> dict[str, Any]:
    """Return medians of rates with 95% intervals; tokens are counted as `vllm bench` does."""
    per_batch = {
        "requests_per_second": workload.num_requests,
        "output_tokens_per_second": workload.num_requests * workload.output_len,
        "total_tokens_per_second": workload.num_requests * workload.model_len,
    }
    return {
        "elapsed_times": list(seconds),
        **{
            name: asdict(median_with_interval([count / one for one in seconds], workload.seed))
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


def _over(
    first: list[float], own: list[float], seed: int, *, is_first: bool
) -> dict[str, dict[str, float]]:
    """Return how much faster a model is than the first, from the ratios of their rounds."""
    if is_first:
        return {}
    speedups = ratios(round_sums(first), round_sums(own))
    return {"speedup": asdict(median_with_interval(speedups, seed))}


def offline_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a record as a table with a row for each model, the first one's noise floor last."""
    workload, models = record["workload"], record["models"]
    is_throughput = workload["kind"] == "throughput"
    if is_throughput:
        running = f"{workload['num_prompts']} requests, {workload['max_num_seqs']} at a time"
        columns = ["requests/s", "output tokens/s", "total tokens/s"]
    else:
        running = f"{workload['batch_size']} requests at once"
        columns = ["mean s", "median s", "p90 s", "p99 s"]
    yield (
        f"{record['engine']}: {running}, {workload['input_len']} + {workload['output_len']} "
        f"tokens each, {2 * workload['num_iters']} runs of each model"
    )
    cells = _rate_cells if is_throughput else _latency_cells
    rows = [[name, *cells(figures), *_speedup_cells(figures)] for name, figures in models.items()]
    if record["floor"] is not None:
        first = next(iter(models))
        floor = record["floor"]
        rows.append([f"{first}{AGAIN}", *cells(floor), *_speedup_cells(floor)])
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
