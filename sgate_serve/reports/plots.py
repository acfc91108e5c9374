"""Plots of models and measurements, drawn with matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import PRUNED, Comparison
from sgate_serve.bench.statistics import Estimate
from sgate_serve.errors import SgateError, writing
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.placement import dense_spec
from sgate_serve.reports.inspection import Inspection

KEPT, GONE, ACCENT = "#3b6ea5", "#d9e2ec", "#c8553d"
# One colour per model of a comparison, and the fraction of a phase's height that models occupy.
MODELS = (KEPT, "#5b8c5a", "#8a6bb1", "#c9963b", "#4aa3a2", "#7a5c4f", "#b0568f")
SPREAD = 0.7
FORMATS = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of the given size in inches, with `panels` axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def check_format(path: Path) -> None:
    """Raise SgateError for an unsupported file type."""
    if path.suffix.lower() not in FORMATS:
        raise SgateError(f"{path}: give a file name that ends in {', '.join(FORMATS)}")


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure; raise SgateError for an unsupported file type or an unwritable path."""
    check_format(path)
    with writing(path):
        figure.savefig(path, dpi=150)


def plot_widths(inspection: Inspection, path: Path) -> None:
    """Draw the remaining fraction of each layer's widths and weights."""
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
    """Draw one bar per layer, kept over total, labelled with the kept share."""
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
    """Draw each phase's measured speedups with intervals, the ideals, and the A/A noise floor.

    With further models in the comparison, each model and the floor get a line of their own.
    """
    results, models = comparison.results, (PRUNED, *comparison.beside)
    num_lines = len(models) + 1 if comparison.beside else 1
    figure, axes = new_figure(7, 1.4 + 0.3 * len(results) * (1 + num_lines))
    axis, middles = axes[0], range(len(results))
    lines = [
        [middle + SPREAD * ((line + 0.5) / num_lines - 0.5) for middle in middles]
        for line in range(num_lines)
    ]
    for number, (model, rows) in enumerate(zip(models, lines, strict=False)):
        measured = [result.speedups[model].measured for result in results.values()]
        label = model if comparison.beside else "measured"
        _draw_estimates(axis, rows, measured, color=MODELS[number % len(MODELS)], label=label)
    ideals = [
        (r.speedups[m].ideal, row)
        for m, rows in zip(models, lines, strict=False)
        for r, row in zip(results.values(), rows, strict=True)
    ]
    axis.scatter(
        *zip(*ideals, strict=True), color=ACCENT, marker="|", s=300 / num_lines, label="ideal"
    )
    floors = [result.floor for result in results.values()]
    _draw_estimates(axis, lines[-1], floors, color="grey", label="dense against itself")
    axis.set(yticks=list(middles), yticklabels=list(results), xlabel="speedup over dense")
    axis.margins(y=0.2 / num_lines)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    save_figure(figure, path)


def _draw_estimates(
    axis: Any, rows: Sequence[float], estimates: Sequence[Estimate], **style: str
) -> None:
    """Draw a dot at each median and a bar over its interval."""
    for row, estimate in zip(rows, estimates, strict=True):
        ends = [estimate.low, estimate.high]
        axis.plot(ends, [row, row], color=style["color"], linewidth=3, alpha=0.5)
    axis.scatter([estimate.median for estimate in estimates], rows, **style)


def plot_training(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the loss of each phase and, if gates were trained, the fractions they removed.

    `metrics` is the content of a gates folder's metrics.json.
    """
    logs = {name: entries for name, entries in metrics["log"].items() if entries}
    gates = logs.get("gates")
    figure, axes = new_figure(9 if gates else 5, 3.2, panels=2 if gates else 1)
    start = 0
    for (name, entries), color in zip(logs.items(), MODELS, strict=False):
        steps = [start + entry["step"] for entry in entries]
        axes[0].plot(steps, [entry["loss"] for entry in entries], color=color, label=name)
        start = steps[-1]
    axes[0].set(xlabel="step", ylabel="training loss, penalty included")
    axes[0].legend(frameon=False)
    if gates:
        _draw_removal(axes[1], gates)
    figure.suptitle(_training_title(metrics), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _draw_removal(axis: Any, entries: Sequence[Mapping[str, float]]) -> None:
    """Draw the expected and closed fractions of both kinds of block, and their goals."""
    steps = [entry["step"] for entry in entries]
    for block, color in zip(("mlp", "attention"), MODELS, strict=False):
        for kind, style in (("goal", ":"), ("expected", "-"), ("closed", "--")):
            values = [entry[f"{kind}_{block}"] for entry in entries]
            axis.plot(steps, values, color=color, linestyle=style, label=f"{block}, {kind}")
    axis.set(xlabel="step of the gates", ylabel="fraction removed", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)


def _training_title(metrics: Mapping[str, Any]) -> str:
    score = next(iter(metrics["scores"]["dense"]))
    values = (f"{stage} {of[score]['value']:.3g}" for stage, of in metrics["scores"].items())
    return f"{metrics['removed']:.1%} removed; {score}: {', '.join(values)}"
