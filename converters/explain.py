"""A plan for a person to read: each layer's widths, what was removed by which rule, and why."""

from collections.abc import Iterator, Sequence

from sgate_serve.plan import AXES, LayerPlan, Plan
from sgate_serve.spec import ModelSpec

AXIS_NAMES = {"mlp_units": "MLP unit", "heads": "query head", "kv_heads": "KV head"}
MAX_SHOWN_RANGES = 12


def plan_table(plan: Plan, dense: ModelSpec, explain: bool) -> Iterator[str]:
    """Yield the lines of the table; with `explain`, each layer's reasons below its row."""
    yield f"{'layer':>5}  {'MLP units':>15}  {'query heads':>13}  {'KV heads':>11}  {'removed':>7}"
    for layer in plan.layers:
        yield _layer_row(layer, dense.hidden_size)
        if explain:
            yield from _reasons(layer)
    yield (
        f"removed {plan.removed(dense):.2%} of the block linears, "
        f"{plan.removed_overall(dense):.2%} of all parameters (alignment {plan.align})"
    )


def format_indices(indices: Sequence[int]) -> str:
    """Return sorted indices as ranges, (0, 1, 2, 7) → '0-2, 7'; of many only the first."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:MAX_SHOWN_RANGES]]
    left_out = sum(b - a + 1 for a, b in ranges[MAX_SHOWN_RANGES:])
    return ", ".join([*shown, f"and {left_out} more"] if left_out else shown)


def _layer_row(layer: LayerPlan, hidden_size: int) -> str:
    dense = layer.dense
    sizes = (dense.mlp_units, dense.num_heads, dense.num_kv_heads)
    widths = [
        f"{len(layer.survivors(axis))} of {size}" for axis, size in zip(AXES, sizes, strict=True)
    ]
    kept = _num_weights(layer.shape.linear_shapes(hidden_size))
    total = _num_weights(dense.linear_shapes(hidden_size))
    removed = 1 - kept / total if total else 0.0
    return f"{layer.index:>5}  {widths[0]:>15}  {widths[1]:>13}  {widths[2]:>11}  {removed:>7.1%}"


def _reasons(layer: LayerPlan) -> Iterator[str]:
    for removal in layer.removals:
        yield (
            f"       - {len(removal.indices)} × {AXIS_NAMES[removal.axis]}: {removal.cause} "
            f"(rule {removal.rule}): {format_indices(removal.indices)}"
        )
    for revival in layer.revivals:
        yield (
            f"       + {len(revival.indices)} × {AXIS_NAMES[revival.axis]} kept though dead: "
            f"{revival.reason}: {format_indices(revival.indices)}"
        )


def _num_weights(shapes: dict[str, tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes.values())
