"""Plots say what they show: titles, units, legends of what is drawn, rows that do not overlap."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.comparison import Comparison, PhaseResult, Speedup
from sgate_serve.bench.statistics import Estimate
from sgate_serve.bench.workload import Workload
from sgate_serve.plan import Target
from sgate_serve.reports import plots
from sgate_serve.reports.inspection import Inspection
from tests.converters.test_convert import write_gates
from tests.small_llama import dense_llama, save

Drawn = Callable[..., Any]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draw a plot and return its figure, under a user's style that is unreadable on white."""
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))

    def draw(plot: Callable[..., None], *values: Any) -> Any:
        with matplotlib.rc_context({"text.color": "white", "figure.facecolor": "black"}):
            plot(*values, Path("plot.png"))
        (figure,) = kept
        figure.draw_without_rendering()
        return figure

    return draw


def legend_of(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def title_of(figure: Any) -> str:
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert figure._suptitle.get_color() == "black"
    return str(figure._suptitle.get_text())


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A dense Llama, and its uneven and its uniform conversion."""
    base = save(dense_llama(), tmp_path / "dense")
    units = base.spec.layers[0].mlp_units
    gates = {f"model.layers.{i}.mlp_units": np.arange(units) >= 1 + 2 * i for i in range(3)}
    write_gates(base, tmp_path / "gates", **gates)
    for name, target in (("uneven", Target()), ("uniform", Target(uniform=True))):
        options = ConvertOptions(str(base.folder), tmp_path / name, tmp_path / "gates")
        convert(ConvertOptions(**{**vars(options), "target": target}))
    return {name: tmp_path / name for name in ("dense", "uneven", "uniform")}


@pytest.mark.parametrize(
    ("name", "legend", "title"),
    [
        ("dense", ["kept"], ", which has no plan of what was removed"),
        ("uneven", ["kept", "removed"], "% of all parameters"),
        ("uniform", ["kept", "kept for the width, but dead", "removed"], "% of all parameters"),
    ],
)
def test_widths_name_only_what_is_drawn(
    name: str, legend: list[str], title: str, folders: dict[str, Path], drawn: Drawn
) -> None:
    figure = drawn(plots.plot_widths, Inspection.of(folders[name]))
    axes = figure.axes
    assert legend_of(axes[-1]) == legend
    assert axes[-1].get_legend().get_title().get_text() == "% is the share kept"
    titles = [axis.get_title() for axis in axes]
    assert titles == ["MLP units", "query heads", "KV heads", "weights of the linears"]
    assert {axis.get_xlabel() for axis in axes} == {"number"}
    assert title_of(figure).startswith(f"Widths of the layers of {name} (llama)")
    assert title_of(figure).endswith(title)


def test_bars_of_a_layer_add_up_to_its_dense_width(folders: dict[str, Path], drawn: Drawn) -> None:
    figure = drawn(plots.plot_widths, Inspection.of(folders["uniform"]))
    units = Inspection.of(folders["dense"]).folder.spec.layers[0].mlp_units
    kept, dead, removed = ([bar.get_width() for bar in bars] for bars in figure.axes[0].containers)
    assert kept == [units - 1, units - 3, units - 5]
    assert (dead, removed) == ([0, 2, 4], [1, 1, 1])
    share = f"{100 - 100 / units:.0f}%"
    assert [text.get_text() for text in figure.axes[0].texts] == [share] * 3


def test_shares_are_100_percent_only_where_nothing_is_gone() -> None:
    assert [plots._share(*pair) for pair in ((999, 1000), (1000, 1000), (1, 1000), (0, 9))] == [
        "99%",
        "100%",
        "1%",
        "0%",
    ]


def comparison(beside: dict[str, str]) -> Comparison:
    measured = Estimate(1.4, 1.3, 1.5)
    speedups = {name: Speedup(measured, 1.5) for name in ("pruned", *beside)}
    phase = PhaseResult(speedups, Estimate(1.0, 0.9, 1.1), {})
    return Comparison(
        engine="onnx",
        dense="/models/big",
        pruned="/models/small",
        beside=beside,
        precisions={"dense": "fp32", "pruned": "fp32"},
        workload=Workload(rounds=7),
        results={"decode_batch_1": phase, "decode_batch_8": phase, "prefill": phase},
        rounds=7,
    )


@pytest.mark.parametrize("beside", [{}, {"masked": "/models/masked", "other": "/models/other"}])
def test_no_two_intervals_of_a_comparison_share_a_row(beside: dict[str, str], drawn: Drawn) -> None:
    figure = drawn(plots.plot_comparison, comparison(beside))
    (axis,) = figure.axes
    series = [bars.lines[0].get_ydata() for bars in axis.containers]
    assert len(series) == 2 + len(beside)
    assert len({row for rows in series for row in rows}) == 3 * len(series)
    first, second, third = zip(*series, strict=True)
    assert max(first) < min(second) - 1 and max(second) < min(third) - 1
    names = ["pruned", *beside, "dense against itself: the noise"]
    assert set(legend_of(axis)) == {"as fast as dense", "ideal", *names}
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["decode, batch 1", "decode, batch 8", "prefill"]
    assert axis.get_xlabel() == "speedup over dense, times (dots: medians; bars: 95% intervals)"
    assert title_of(figure) == "Speed of small against big on onnx, fp32: 7 rounds"


def metrics(scores: dict[str, float], phases: tuple[str, ...]) -> dict[str, Any]:
    entry = {
        "loss": 2.0,
        **{
            f"{kind}_{block}": 0.3
            for kind in ("goal", "expected", "closed")
            for block in ("mlp", "attention")
        },
    }
    values = {name: {"value": value} for name, value in scores.items()}
    return {
        "removed": 0.3,
        "scores": {"dense": values, "masked": values, "recovered": values},
        "log": {name: [{"step": step, **entry} for step in (5, 10)] for name in phases},
    }


@pytest.mark.parametrize(
    ("scores", "unit"),
    [
        ({"loss": 3.1, "perplexity": 22.2}, "nats per token"),
        ({"accuracy": 0.9}, "nats per example"),
        ({"pearson": 0.8}, "squared error"),
    ],
)
def test_losses_have_a_unit_and_phases_follow_each_other(
    scores: dict[str, float], unit: str, drawn: Drawn
) -> None:
    figure = drawn(plots.plot_training, metrics(scores, ("dense", "recovery")))
    (axis,) = figure.axes
    assert axis.get_ylabel() == f"loss ({unit})"
    assert legend_of(axis) == ["dense", "recovery"]
    assert [line.get_xdata()[-1] for line in axis.lines if line.get_marker() == "."] == [10, 20]
    name, value = next(iter(scores.items()))
    assert title_of(figure).splitlines() == [
        "30.0% of the block weights removed",
        f"held-out {name}: dense {value}, masked {value}, recovered {value}",
    ]
    # The title fits on the figure.
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_the_control_is_drawn_beside_the_recovery(drawn: Drawn) -> None:
    scores, phases = {"loss": 3.1, "perplexity": 22.2}, ("dense", "control", "recovery")
    (axis,) = drawn(plots.plot_training, metrics(scores, phases)).axes
    assert legend_of(axis) == ["dense", "dense control", "recovery"]
    control, recovery = (axis.lines[number] for number in (1, 2))
    assert control.get_linestyle() == "--"
    assert [*control.get_xdata()] == [*recovery.get_xdata()] == [15, 20]


def test_goals_of_gates_show_below_the_lines_that_meet_them(drawn: Drawn) -> None:
    figure = drawn(plots.plot_training, metrics({"loss": 3.1, "perplexity": 22.2}, ("gates",)))
    losses, removal = figure.axes
    assert legend_of(losses) == ["gates, their penalty included"]
    kinds = ("goal", "expected", "closed")
    named = [f"{block}: {kind}" for block in ("MLP", "attention") for kind in kinds]
    assert legend_of(removal) == named
    widths = [line.get_linewidth() for line in removal.lines]
    assert widths[0] > widths[1] and removal.lines[2].get_linestyle() == "--"
    assert removal.get_ylabel() == "share of the block's weights"
    assert {label.get_text()[-1] for label in removal.get_yticklabels()} == {"%"}
