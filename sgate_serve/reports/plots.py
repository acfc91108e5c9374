"""Plots of models and measurements, drawn with matplotlib without a display."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.comparison import PRUNED, Comparison
from sgate_serve.bench.statistics import Estimate
from sgate_serve.errors import SgateError, writing
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.figures import revived_weights
from sgate_serve.plan.placement import dense_spec
from sgate_serve.reports.inspection import Inspection

KEPT, REVIVED, GONE, ACCENT = "#3b6ea5", "#9bbcdd", "#e3e8ee", "#c8553d"
FLOOR, NOTE = "#8c8c8c", "#555555"
# One colour per model of a comparison, or per phase of training.
MODELS = (KEPT, "#5b8c5a", "#8a6bb1", "#c9963b", "#4aa3a2", "#7a5c4f", "#b0568f", "#6b7a8f")
# The height of a row of a comparison in inches, and the gap between phases in rows.
ROW, GAP = 0.3, 0.8
BLOCK_TITLES: Mapping[str, str] = {"mlp": "MLP", "attention": "attention"}
OUTSIDE: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
# The phase of training that is drawn beside another one.
CONTROL = "control"
FORMATS = (".png", ".svg", ".pdf")

# For each layer: how many there were, how many are stored, and how many of these are dead.
Bars = list[tuple[int, int, int]]


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of the given size in inches, with `panels` axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
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


# The user's own style does not apply: a dark one would make labels unreadable.
@style.context("default")
def plot_widths(inspection: Inspection, path: Path) -> None:
    """Draw how much of each layer's widths and weights is kept, and how much of that is dead."""
    spec, plan = inspection.folder.spec, inspection.plan
    dense = spec if plan is None else dense_spec(plan, spec, PLAN_FILE)
    figure, axes = new_figure(11, 2.3 + 0.24 * len(spec.layers), panels=4)
    named: dict[str, Any] = {}
    for axis, (title, bars) in zip(axes, width_bars(dense, spec, plan).items(), strict=True):
        named |= _draw_widths(axis, title, bars)
        axis.tick_params(labelleft=axis is axes[0])
    axes[0].set_ylabel("layer")
    axes[-1].legend(named.values(), named.keys(), title="% is the share kept", **OUTSIDE)
    figure.suptitle(_widths_title(inspection), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def width_bars(dense: ModelSpec, spec: ModelSpec, plan: Plan | None) -> Mapping[str, Bars]:
    """Return the bars of each panel of `plot_widths`."""
    bars: dict[str, Bars] = {"MLP units": [], "query heads": [], "KV heads": []}
    for index, (was, is_) in enumerate(zip(dense.layers, spec.layers, strict=True)):
        dead = [0, 0, 0]
        if plan is not None:
            axes = plan.layers[index].revived
            dead = [len(axes("mlp_units")), len(axes("heads")), len(axes("kv_heads"))]
        bars["MLP units"].append((was.mlp_units, is_.mlp_units, dead[0]))
        bars["query heads"].append((was.num_heads, is_.num_heads, dead[1]))
        bars["KV heads"].append((was.num_kv_heads, is_.num_kv_heads, dead[2]))
    revived = [0] * len(spec.layers) if plan is None else revived_weights(plan, dense)
    weights = (
        (dense.layer_weights(index), spec.layer_weights(index), dead)
        for index, dead in enumerate(revived)
    )
    return {**bars, "weights of the linears": list(weights)}


def _draw_widths(axis: Any, title: str, bars: Bars) -> dict[str, Any]:
    """Draw a bar per layer, labelled with the share kept; return what the legend names."""
    layers, widest = list(range(len(bars))), max((total for total, _, _ in bars), default=1) or 1
    parts = {
        "kept": (KEPT, [kept - dead for _, kept, dead in bars]),
        "kept for the width, but dead": (REVIVED, [dead for _, _, dead in bars]),
        "removed": (GONE, [total - kept for total, kept, _ in bars]),
    }
    ends, drawn = [0] * len(bars), {}
    for name, (color, lengths) in parts.items():
        if any(lengths):
            drawn[name] = axis.barh(layers, lengths, left=ends, color=color)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for layer, (total, kept, _) in enumerate(bars):
        if total:
            at, share = (total + 0.02 * widest, layer), _share(kept, total)
            axis.text(*at, share, va="center", fontsize=8, color=NOTE)
    axis.set(title=title, xlabel="number", xlim=(0, 1.22 * widest), yticks=layers)
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.invert_yaxis()
    return drawn


def _share(kept: int, total: int) -> str:
    """Return a share in percent; only all of them are 100%, and only none are 0%."""
    percent = round(100 * kept / total)
    if kept not in (0, total):
        percent = min(max(percent, 1), 99)
    return f"{percent}%"


def _short(value: float, _: Any) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _widths_title(inspection: Inspection) -> str:
    report = inspection.to_json()
    name = f"Widths of the layers of {inspection.folder.folder.name} ({report['family']})"
    if inspection.plan is None:
        return f"{name}, which has no plan of what was removed"
    return (
        f"{name}: {report['removed']:.1%} of the block weights removed, "
        f"{report['removed_overall']:.1%} of all parameters"
    )


@style.context("default")
def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw each phase's measured speedups with intervals, the ideals, and the A/A noise floor.

    Each model, and the dense one against itself, has a row of its own in every phase.
    """
    results, models = comparison.results, (PRUNED, *comparison.beside)
    step = len(models) + 1 + GAP
    figure, axes = new_figure(8.5, 1.6 + ROW * step * len(results))
    axis, starts = axes[0], [step * number for number in range(len(results))]
    for start in starts[1:]:
        axis.axhline(start - (1 + GAP) / 2, color=GONE, linewidth=1, zorder=0)
    axis.axvline(1, color=NOTE, linewidth=1, linestyle=":", label="as fast as dense", zorder=0)
    for number, model in enumerate(models):
        rows, color = [start + number for start in starts], MODELS[number % len(MODELS)]
        speedups = [result.speedups[model] for result in results.values()]
        _draw_estimates(axis, rows, [s.measured for s in speedups], model, color)
        label = "ideal" if number == 0 else None
        ideals = [speedup.ideal for speedup in speedups]
        axis.scatter(ideals, rows, color=ACCENT, marker="|", s=160, label=label, zorder=3)
    rows = [start + len(models) for start in starts]
    floors = [result.floor for result in results.values()]
    _draw_estimates(axis, rows, floors, "dense against itself: the noise", FLOOR)
    middles = [start + len(models) / 2 for start in starts]
    axis.set(yticks=middles, yticklabels=[_phase_title(name) for name in results])
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("speedup over dense, times (dots: medians; bars: 95% intervals)")
    axis.xaxis.set_major_formatter("{x:g}×")
    axis.set_ylim(rows[-1] + 0.7, -0.7)
    axis.legend(**OUTSIDE)
    figure.suptitle(_comparison_title(comparison), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _draw_estimates(
    axis: Any, rows: Sequence[float], estimates: Sequence[Estimate], label: str, color: str
) -> None:
    """Draw a dot at each median and a capped bar over its interval."""
    medians = [estimate.median for estimate in estimates]
    below = [estimate.median - estimate.low for estimate in estimates]
    above = [estimate.high - estimate.median for estimate in estimates]
    marks = {"fmt": "o", "markersize": 6, "elinewidth": 2, "capsize": 4, "capthick": 2}
    axis.errorbar(medians, rows, xerr=[below, above], color=color, label=label, **marks)


def _phase_title(name: str) -> str:
    """Return a phase as a reader says it: "decode_batch_8" is "decode, batch 8"."""
    kind, _, batch = name.partition("batch_")
    return ", ".join(part for part in (kind.rstrip("_"), f"batch {batch}" if batch else "") if part)


def _comparison_title(comparison: Comparison) -> str:
    pruned, dense = Path(comparison.pruned).name, Path(comparison.dense).name
    return (
        f"Speed of {pruned} against {dense} on {comparison.engine}, "
        f"{comparison.precisions[PRUNED]}: {comparison.rounds} rounds"
    )


@style.context("default")
def plot_training(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the loss of each phase and, if gates were trained, the fractions they removed.

    `metrics` is the content of a gates folder's metrics.json.
    """
    logs = {name: entries for name, entries in metrics["log"].items() if entries}
    gates = logs.get("gates")
    figure, axes = new_figure(11 if gates else 6.5, 3.6, panels=2 if gates else 1)
    _draw_losses(axes[0], logs, _loss_unit(metrics["scores"]["dense"]))
    if gates:
        _draw_removal(axes[1], gates)
    figure.suptitle(_training_title(metrics), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _loss_unit(scores: Container[str]) -> str:
    """Return the unit of the loss, which the held-out scores tell."""
    if "perplexity" in scores:
        return "nats per token"
    return "nats per example" if "accuracy" in scores else "squared error"


def _draw_losses(axis: Any, logs: Mapping[str, Sequence[Mapping[str, float]]], unit: str) -> None:
    """Draw the phases one after another; each point is the mean since the point before.

    The dense control is drawn beside the recovery, whose training it has.
    """
    start, phases = 0.0, {name: log for name, log in logs.items() if name != CONTROL}
    for (name, entries), color in zip(phases.items(), MODELS, strict=False):
        if name == "recovery" and CONTROL in logs:
            beside = [start + entry["step"] for entry in logs[CONTROL]]
            values = [entry["loss"] for entry in logs[CONTROL]]
            axis.plot(beside, values, color=NOTE, linestyle="--", label="dense control")
        steps = [start + entry["step"] for entry in entries]
        label = "gates, their penalty included" if name == "gates" else name
        losses = [entry["loss"] for entry in entries]
        axis.plot(steps, losses, color=color, marker=".", label=label)
        if start:
            axis.axvline(start, color=NOTE, linewidth=1, linestyle=":", zorder=0)
        start = steps[-1]
    axis.set(title="training loss, means between points", ylabel=f"loss ({unit})")
    axis.set_xlabel("optimizer step, one phase after another")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if logs:
        axis.legend(edgecolor="white", framealpha=0.9)


def _draw_removal(axis: Any, entries: Sequence[Mapping[str, float]]) -> None:
    """Draw the expected and closed fractions of both kinds of block, and their goals."""
    steps = [entry["step"] for entry in entries]
    # The goal is wide and pale, so that it shows below lines that have met it.
    kinds: Mapping[str, Mapping[str, Any]] = {
        "goal": {"linewidth": 5, "alpha": 0.25},
        "expected": {"linewidth": 1.5},
        "closed": {"linewidth": 1.5, "linestyle": "--"},
    }
    for (block, title), color in zip(BLOCK_TITLES.items(), MODELS, strict=False):
        for kind, line in kinds.items():
            values = [entry[f"{kind}_{block}"] for entry in entries]
            axis.plot(steps, values, color=color, label=f"{title}: {kind}", **line)
    axis.set(title="weights that the gates remove", xlabel="step of the gate phase")
    axis.set(ylabel="share of the block's weights", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axis.legend(fontsize=9, **OUTSIDE)


def _training_title(metrics: Mapping[str, Any]) -> str:
    score = next(iter(metrics["scores"]["dense"]))
    values = (
        f"{stage.replace('_', ' ')} {of[score]['value']:.3g}"
        for stage, of in metrics["scores"].items()
    )
    return f"{metrics['removed']:.1%} of the block weights removed\nheld-out {score}: " + (
        ", ".join(values)
    )
