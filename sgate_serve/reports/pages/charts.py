"""Pictures of a report as SVG inside the page, in the page's colours (`--c0` to `--c11`)."""

import math
from collections.abc import Sequence
from html import escape

from sgate_serve.reports.pages.content import Bars, Curves, Profile

COLOURS = 12
WIDTH, LEFT, RIGHT = 760, 190, 70
ROW, LEGEND_ROW, CHARACTER = 24, 20, 7
PLOT_HEIGHT, BOTTOM, TICKS = 280, 46, 5


def bars(chart: Bars) -> str:
    """Draw stacked bars, longest to the right edge, with a legend above them."""
    shapes, top = _legend(chart.parts)
    most = max((sum(values) for _, values in chart.bars), default=0) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    for index, (label, values) in enumerate(chart.bars):
        y, x = top + index * ROW, float(LEFT)
        shapes.append(_text(LEFT - 8, y + 13, label, "end"))
        for part, value in enumerate(values):
            width = value * scale
            title = f"{chart.parts[part]}: {value:,.2f} {chart.unit}"
            shapes.append(_rectangle(x, y, width, ROW - 6, _colour(part), title))
            x += max(width, 0.0)
        shapes.append(_text(x + 6, y + 13, f"{sum(values):,.4g} {chart.unit}", kind="soft"))
    return _svg(shapes, top + len(chart.bars) * ROW)


def curves(chart: Curves) -> str:
    """Draw lines through labelled points; both axes begin at 0."""
    shapes, top = _legend([name for name, _ in chart.lines])
    points = [point for _, line in chart.lines for point in line]
    x_most = _round_up(max((x for x, _, _ in points), default=1))
    y_most = _round_up(max((y for _, y, _ in points), default=1))
    top += 10
    left, right, bottom = 70, WIDTH - 40, top + PLOT_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_most * (right - left), bottom - y / y_most * PLOT_HEIGHT

    for tick in range(TICKS + 1):
        x, y = x_most * tick / TICKS, y_most * tick / TICKS
        shapes.append(_line(place(x, 0), place(x, y_most), "axis"))
        shapes.append(_line(place(0, y), place(x_most, y), "axis"))
        shapes.append(_text(place(x, 0)[0], bottom + 16, f"{x:,.8g}", "middle", "soft"))
        shapes.append(_text(left - 6, place(0, y)[1] + 4, f"{y:,.8g}", "end", "soft"))
    shapes.append(_text((left + right) / 2, bottom + 36, chart.x_title, "middle"))
    shapes.append(_text(left, top - 14, chart.y_title))
    for index, (_, line) in enumerate(chart.lines):
        places = [place(x, y) for x, y, _ in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        shapes.append(
            f'<polyline points="{path}" fill="none" style="stroke:{_colour(index)}" '
            'stroke-width="2"/>'
        )
        for (x, y), (_, _, label) in zip(places, line, strict=True):
            shapes.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{_colour(index)}"/>'
            )
            above = -8 if index % 2 == 0 else 18
            shapes.append(_text(x, y + above, label, "start" if above < 0 else "end", "soft"))
    return _svg(shapes, bottom + BOTTOM)


def profile(chart: Profile) -> str:
    """Draw a column for each layer: pruned in front of dense; what exceeds dense has a colour."""
    most = max((max(pair) for pair in chart.layers), default=0) or 1
    left, top, height = 60, 20, 140
    step = (WIDTH - left - 20) / max(1, len(chart.layers))
    shapes = [_text(left - 6, top + 4, f"{most:,.3g}", "end", "soft")]
    shapes += [_text(left - 6, top + height, "0", "end", "soft")]
    shapes.append(_text(left, 12, f"{chart.unit}: pruned, in front of dense in grey"))
    for index, (after, before) in enumerate(chart.layers):
        title = f"layer {index}: {after:,.3g} pruned, {before:,.3g} dense"
        kept = [(before, "var(--gone)"), (after, _colour(0))]
        grown = [(after, _colour(1)), (before, _colour(0))]
        for value, fill in kept if after <= before else grown:
            size = height * value / most
            x = left + index * step
            shapes.append(_rectangle(x, top + height - size, step * 0.8, size, fill, title))
        if index % max(1, len(chart.layers) // 10) == 0:
            middle = left + (index + 0.4) * step
            shapes.append(_text(middle, top + height + 16, str(index), "middle", "soft"))
    shapes.append(_text(WIDTH / 2, top + height + 34, "layer", "middle"))
    return _svg(shapes, top + height + BOTTOM)


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """Return the shapes of a legend in rows, and the height at which the picture begins."""
    shapes: list[str] = []
    x, y = 8.0, 4
    for index, name in enumerate(names):
        size = 24 + CHARACTER * len(name)
        if x + size > WIDTH and x > 8:
            x, y = 8.0, y + LEGEND_ROW
        shapes.append(_rectangle(x, y, 12, 12, _colour(index), name))
        shapes.append(_text(x + 17, y + 11, name))
        x += size + 8
    return shapes, y + LEGEND_ROW + 18


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten, so that ticks are round."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def _rectangle(x: float, y: float, width: float, height: float, fill: str, title: str) -> str:
    sizes = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {sizes} style="fill:{fill}"><title>{escape(title)}</title></rect>'


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    (x1, y1), (x2, y2) = start, end
    places = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {places}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _svg(shapes: Sequence[str], height: float) -> str:
    body = "".join(shapes)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">{body}</svg>'
