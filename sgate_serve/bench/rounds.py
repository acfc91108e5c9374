"""Rounds of timed runs, in which models are interleaved so that slow drift of the machine cancels.

Each round times every phase on all models forwards, then backwards, so that all have the same mean
position.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from sgate_serve.bench.workload import Measure
from sgate_serve.progress import activity, counted

# The threads of the previous model spin for 2 ms after its run (engines/onnx/runner.py). Without a
# pause, a small dense model measured up to 1.3 times as fast or as slow as itself.
SETTLE_SECONDS = 0.01

# Phase → model → seconds, two values per round.
Times = dict[str, dict[str, list[float]]]


def order_of(models: Iterable[str]) -> tuple[str, ...]:
    """Return the order of a round: all models forwards, then backwards."""
    forwards = tuple(models)
    return forwards + forwards[::-1]


def measure_rounds(
    measures: Mapping[str, Measure],
    models: Mapping[str, Any],
    rounds: int,
    times: Times | None = None,
    name_shown: str = "measuring",
) -> Times:
    """Time every phase on every model; return the times. Progress is under `name_shown`.

    An unrecorded first round warms up caches, buffers and clocks. Values are added to `times`, if
    given, as they are measured, so that a caller who is interrupted has them.
    """
    times = {} if times is None else times
    times |= {name: {model: [] for model in models} for name in measures}
    order = order_of(models)
    runs = list(product(range(rounds + 1), measures.items(), order))
    with activity(name_shown, is_brief=True):
        for number, (name, measure), model in counted(runs, "run"):
            time.sleep(SETTLE_SECONDS)
            seconds = measure(models[model])
            if number:
                times[name][model].append(seconds)
    return times


def num_whole_rounds(times: Times) -> int:
    """Count the rounds of which every phase was timed twice on every model."""
    return min((len(own) // 2 for phase in times.values() for own in phase.values()), default=0)


def whole_rounds(times: Times) -> Times:
    """Return the times without those of a round that was interrupted."""
    end = 2 * num_whole_rounds(times)
    return {
        name: {model: own[:end] for model, own in phase.items()} for name, phase in times.items()
    }


def round_sums(values: list[float]) -> list[float]:
    """Return the sum of each round's two values."""
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)]


def mean_sums(first: list[float], second: list[float]) -> list[float]:
    """Return the mean over two copies of a model of the sums of their rounds."""
    return [(a + b) / 2 for a, b in zip(round_sums(first), round_sums(second), strict=True)]


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the elementwise ratios of `above` to `below`."""
    return [a / b for a, b in zip(above, below, strict=True)]


def interruption_lines(record: Mapping[str, Any], planned: str) -> Iterator[str]:
    """Say after how many rounds a measurement was interrupted, if it was.

    `planned` is the field of its workload that says how many there should have been.
    """
    # Records written before this key existed are of whole measurements.
    if record.get("interrupted"):
        yield f"interrupted after {record['rounds']} of {record['workload'][planned]} rounds"
