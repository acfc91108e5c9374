"""Pictures of models and measurements, drawn with matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgate_serve.bench.compare import Comparison
from sgate_serve.errors import SgateError
from sgate_serve.inspect import Inspection
from sgate_serve.placement import dense_spec
from sgate_serve.plan import PLAN_FILE

KEPT, GONE, ACCENT = "#3b6ea5", "#d9e2ec", "#c8553d"
FORMATS = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of that size in inches, with `panels` axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure; raise SgateError for a file type that is not drawn."""
    if path.suffix not in FORMATS:
        raise SgateError(f"{path}: give a file name that ends in {', '.join(FORMATS)}")
    figure.savefig(path, dpi=150)


def plot_widths(inspection: Inspection, path: Path) -> None:
    """Draw how much of each layer's MLP and attention is left of the dense width."""
    spec = inspection.folder.spec
    dense = spec if inspection.plan is None else dense_spec(inspection.plan, spec, PLAN_FILE)
    figure, axes = new_figure(9, 1.2 + 0.22 * len(spec.layers), panels=2)
    panels = (
        (axes[0], "MLP units", [(d.mlp_units, k.mlp_units) for d, k in _pairs(dense, spec)]),
        (axes[1], "query heads", [(d.num_heads, k.num_heads) for d, k in _pairs(dense, spec)]),
    )
    for axis, title, sizes in panels:
        layers = range(len(sizes))
        axis.barh(layers, [total for total, _ in sizes], color=GONE, label="removed")
        axis.barh(layers, [kept for _, kept in sizes], color=KEPT, label="kept")
        axis.set(title=title, xlabel="width", yticks=list(layers))
        axis.invert_yaxis()
    axes[0].set_ylabel("layer")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    save_figure(figure, path)


def _pairs(dense: Any, kept: Any) -> Any:
    return zip(dense.layers, kept.layers, strict=True)


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw each phase's measured speedup with its interval, the ideal, and the A/A noise floor."""
    results = comparison.results
    figure, axes = new_figure(7, 1.4 + 0.6 * len(results))
    axis, rows = axes[0], range(len(results))
    for row, result in zip(rows, results.values(), strict=True):
        speedup, floor = result.speedup, result.floor
        axis.plot([speedup.low, speedup.high], [row, row], color=KEPT, linewidth=3, alpha=0.5)
        axis.plot([floor.low, floor.high], [row, row], color="grey", linewidth=3, alpha=0.4)
    axis.scatter([r.speedup.median for r in results.values()], rows, color=KEPT, label="measured")
    axis.scatter(
        [r.ideal for r in results.values()], rows, color=ACCENT, marker="|", s=300, label="ideal"
    )
    axis.scatter(
        [r.floor.median for r in results.values()], rows, color="grey", label="dense against itself"
    )
    axis.set(yticks=list(rows), yticklabels=list(results), xlabel="speedup over dense")
    axis.margins(y=0.2)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    save_figure(figure, path)
