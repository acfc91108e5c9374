"""An explanation as tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import ALL_KINDS
from sgate_serve.bench.explain.sentences import MODELS
from sgate_serve.bench.text_table import table_lines


def explanation_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table for each phase, with a row for each kind of work, and what follows from it."""
    for phase, by_model in record["phases"].items():
        dense, pruned = by_model[DENSE], by_model[PRUNED]
        kinds = [kind for kind in ALL_KINDS if kind in dense["kinds"] or kind in pruned["kinds"]]
        rows = [[phase, "dense ms", "share", "pruned ms", "share", "dense / pruned"]]
        rows += [[kind, *_cells(dense, pruned, kind)] for kind in kinds]
        rows += [["all", *_times(dense["seconds"], pruned["seconds"])]]
        yield from table_lines(rows)
        yield from _points(record["sentences"][phase])
        yield ""
    yield "each part's time is its shortest with the profiler on"
    yield from _points(record["sentences"][MODELS])


def _points(sentences: Iterable[str]) -> Iterator[str]:
    return (f"- {sentence}" for sentence in sentences)


def _cells(dense: Mapping[str, Any], pruned: Mapping[str, Any], kind: str) -> list[str]:
    times = [one["kinds"].get(kind, 0.0) for one in (dense, pruned)]
    wholes = (dense["seconds"], pruned["seconds"])
    shares = (f"{time / whole:.0%}" for time, whole in zip(times, wholes, strict=True))
    return _times(*times, *shares)


def _times(before: float, after: float, *shares: str) -> list[str]:
    own, others = shares or ("", "")
    ratio = f"{before / after:.2f}x" if after else "gone"
    return [f"{1000 * before:.2f}", own, f"{1000 * after:.2f}", others, ratio]
