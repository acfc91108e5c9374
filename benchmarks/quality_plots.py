"""Plots of quality against the removed fraction and against the resulting speed.

`python -m benchmarks.quality_plots` draws the records in `benchmarks/results/` into `docs/`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator

from benchmarks.quality_tables import UNITS, firsts_of, phases_of, title_of
from benchmarks.tables import QUALITY, QUALITY_LM, QUALITY_RECORDS, ROOT, read_records
from sgate_serve.reports.plots import ACCENT, MODELS, new_figure, save_figure

# One point of a method: (removed fraction or speed, change of the score, its standard error).
Point = tuple[float, float, float]
# The position of a cell on the horizontal axis, if it was measured.
Position = Callable[[Mapping[str, Any]], float | None]
STYLE: Mapping[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2}
DRAWN = (QUALITY, QUALITY_LM)
# The scale is linear up to this change of perplexity, in percent, and logarithmic above it.
LINEAR_PERCENT = 10
# The distance of neighbouring methods on the axis of removed fractions.
NUDGE = 0.003
TICKS = (-10, -5, 0, 5, 10, 20, 50, 100, 200)


def plot_quality(record: Mapping[str, Any], score: str, path: Path) -> None:
    """Plot each method's change against dense over the removed fraction and over the speedup."""
    phase = phases_of(record["cells"])[1]
    figure, axes = new_figure(10, 3.6, panels=2)
    # All methods remove the same fractions, so the points are nudged apart; the label says so.
    panels: Mapping[str, tuple[float, Position]] = {
        f"fraction of block weights removed\n(methods moved apart by {NUDGE:g})": (
            NUDGE,
            lambda cell: cell["removed"],
        ),
        f"{title_of(phase)} over dense, times, ONNX Runtime": (
            0.0,
            lambda cell: _speedup(cell, phase),
        ),
    }
    colors = dict(
        zip(_points(record, score, lambda cell: cell["removed"]), cycle(MODELS), strict=False)
    )
    for axis, (title, (nudge, position)) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color=ACCENT, linestyle=":", label="dense")
        methods = _points(record, score, position)
        for number, (name, points) in enumerate(methods.items()):
            x, y, error = zip(*sorted(points), strict=True)
            nudged = [value + nudge * (number - len(methods) / 2) for value in x]
            axis.errorbar(nudged, y, yerr=error, color=colors[name], label=name, **STYLE)
        if score == "perplexity":
            axis.set_yscale("symlog", linthresh=LINEAR_PERCENT)
            axis.yaxis.set_major_locator(FixedLocator(TICKS))
        axis.yaxis.set_major_formatter("{x:+g}")
        axis.set(xlabel=title)
    scale = f"\n(linear to ±{LINEAR_PERCENT}, then logarithmic)" if score == "perplexity" else ""
    axes[0].set(ylabel=f"{score} against dense, {UNITS[score]}{scale}")
    figure.suptitle(f"Quality of pruned models: {score}, ± standard errors", fontsize=10)
    # Speeds of some methods were not measured, so the first panel has all names.
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    save_figure(figure, path)


def _points(record: Mapping[str, Any], score: str, position: Position) -> dict[str, list[Point]]:
    """Return the points of each method that has several targets or seeds.

    Cells are named METHOD TARGET%. With one seed, the error is that of the held-out sample.
    """
    points: dict[str, list[Point]] = defaultdict(list)
    repeated = set()
    for name, cell in firsts_of(record).items():
        method, at = name.rpartition(" ")[0], position(cell)
        if method and at is not None:
            summary = record["summary"][name]
            whole = 1.0 if score == "accuracy" else record["summary"]["dense"][score]
            error = summary["against_dense_standard_error"] or summary["standard_error"]
            change = 100 * summary["against_dense"] / whole
            points[method].append((at, change, 100 * error / whole))
            if len(summary["seeds"]) > 1:
                repeated.add(method)
    return {name: of for name, of in points.items() if len(of) > 1 or name in repeated}


def _speedup(cell: Mapping[str, Any], phase: str) -> float | None:
    if "speed" not in cell:
        return None
    ratio: float = cell["speed"]["speedups"]["onnx"][phase]["ratio"]
    return ratio


def main() -> None:
    records = read_records()
    for name in DRAWN:
        plot_quality(records[name], QUALITY_RECORDS[name], ROOT / "docs" / f"{name}.png")


if __name__ == "__main__":
    main()
