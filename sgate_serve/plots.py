"""Pictures of models and measurements, drawn with matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sgate_serve.bench.compare import Comparison
from sgate_serve.errors import SgateError
from sgate_serve.inspect import Inspection
from sgate_serve.placement import dense_spec
from sgate_serve.plan import PLAN_FILE
from sgate_serve.spec import ModelSpec

KEPT, GONE, ACCENT = "#3b6ea5", "#d9e2ec", "#c8553d"
FORMATS = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of that size in inches, with `panels` axes side by side."""
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
    """Draw how much of each layer is left of its dense width, and what its linears still store."""
    spec = inspection.folder.spec
    dense = spec if inspection.plan is None else dense_spec(inspection.plan, spec, PLAN_FILE)
    figure, axes = new_figure(11, 1.8 + 0.24 * len(spec.layers), panels=4)
    panels = {
        "MLP units": [(d.mlp_units, k.mlp_units) for d, k in _pairs(dense, spec)],
        "query heads": [(d.num_heads, k.num_heads) for d, k in _pairs(dense, spec)],
        "KV heads": [(d.num_kv_heads, k.num_kv_heads) for d, k in _pairs(dense, spec)],
        "weights": list(zip(_layer_weights(dense), _layer_weights(spec), strict=True)),
    }
    for axis, (title, sizes) in zip(axes, panels.items(), strict=True):
        _draw_widths(axis, title, sizes)
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    axes[0].set_ylabel("layer")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(_title(inspection), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _draw_widths(axis: Any, title: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Draw one bar per layer, what is kept over what there was, with the kept share beside it."""
    layers, widest = range(len(sizes)), max((total for total, _ in sizes), default=1) or 1
    axis.barh(layers, [total for total, _ in sizes], color=GONE, label="removed")
    axis.barh(layers, [kept for _, kept in sizes], color=KEPT, label="kept")
    for layer, (total, kept) in enumerate(sizes):
        if total:
            share = f"{kept / total:.0%}"
            axis.text(total + 0.02 * widest, layer, share, va="center", fontsize=7, color="#555555")
    axis.set(title=title, xlim=(0, 1.18 * widest), yticks=list(layers))
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.invert_yaxis()


def _short(value: float, _: Any) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _title(inspection: Inspection) -> str:
    report = inspection.to_json()
    name = f"{inspection.folder.folder.name}, {report['family']}"
    if inspection.plan is None:
        return name
    return (
        f"{name}: {report['removed']:.1%} of the block weights removed, "
        f"{report['removed_overall']:.1%} of all parameters"
    )


def _layer_weights(spec: ModelSpec) -> list[int]:
    return [spec.layer_weights(index) for index in range(len(spec.layers))]


def _pairs(dense: ModelSpec, kept: ModelSpec) -> Any:
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
