"""A plan as readable text: each layer's widths, and each removal with its rule and reason."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import (
    BlockFold,
    ColumnFold,
    HeadUnitFold,
    LayerFold,
    LayerPlan,
    Lowering,
    Plan,
    Removal,
    Target,
    UnitFold,
    ValueFold,
)
from sgate_serve.plan.figures import Figures, revived_weights
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.targets import alignment_advice

AXIS_NAMES = {
    "mlp_units": "MLP unit",
    "experts": "expert",
    "heads": "query head",
    "kv_heads": "KV head",
    "value_dims": "value dimension",
    "key_dims": "key dimension",
    "hidden": "residual dimension",
    "head_units": "unit on top",
}
# Those of a recurrent layer.
RECURRENT_NAMES = AXIS_NAMES | {"heads": "value head", "kv_heads": "key head"}
MAX_SHOWN_RANGES = 8


def plan_table(plan: Plan, dense: ModelSpec, explain: bool) -> Iterator[str]:
    """Yield the lines of the table; with `explain`, the reasons of each layer below its row."""
    small, revived = pruned_spec(plan, dense), revived_weights(plan, dense)
    experts = f"  {'experts':>11}" if dense.family.mixture is not None else ""
    header = f"{'layer':>5}  {'MLP units':>15}{experts}  {'query heads':>13}  {'KV heads':>11}"
    yield header + f"  {'removed':>7}" + (f"  {'revived':>7}" if any(revived) else "")
    for layer, kept_dead in zip(plan.layers, revived, strict=True):
        total = dense.layer_weights(layer.index) or 1
        row = _layer_row(layer, 1 - small.layer_weights(layer.index) / total, bool(experts))
        yield row + (f"  {kept_dead / total:>7.1%}" if any(revived) else "")
        if explain:
            yield from _reasons(plan, layer)
    if explain:
        yield from _model_reasons(plan, dense)
    yield from figure_lines(plan, Figures.of(plan, dense))
    advice = alignment_advice(plan)
    if advice is not None:
        yield advice


def figure_lines(plan: Plan, figures: Figures) -> Iterator[str]:
    """Yield the removal figures, and the cost of revived weights, in words."""
    yield (
        f"removed {figures.removed:.2%} of the block linears, "
        f"{figures.overall:.2%} of all parameters ({_target(plan)})"
    )
    yield (
        f"  {figures.naive:.2%} closed by gates or zeros, {figures.compiled:.2%} provably dead; "
        f"{figures.index_free:.2%} removed without index work, "
        f"{figures.executed:.2%} not executed"
    )
    if figures.revived:
        purpose = "so that all layers are alike" if plan.target.uniform else "for a width"
        yield f"  {figures.revived:.2%} dead but revived {purpose}"


def format_indices(indices: Sequence[int]) -> str:
    """Return sorted indices as ranges, (0, 1, 2, 7) → '0-2, 7'; at most the first few."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:MAX_SHOWN_RANGES]]
    left_out = sum(b - a + 1 for a, b in ranges[MAX_SHOWN_RANGES:])
    return ", ".join([*shown, f"and {left_out} more"] if left_out else shown)


def _target(plan: Plan) -> str:
    target = plan.target
    words = [*(["uniform"] if target.uniform else []), f"alignment {target.align}"]
    if target.tensor_parallel > 1:
        words.append(f"{target.tensor_parallel} shards")
    return ", ".join([*words, f"for {target.engine}"] if target.engine else words)


def _layer_row(layer: LayerPlan, removed: float, has_experts: bool) -> str:
    kept, before = layer.shape, layer.dense
    cells = [f"{layer.index:>5}", f"{f'{kept.mlp_units} of {before.mlp_units}':>15}"]
    if has_experts:
        experts = f"{len(kept.experts)} of {len(before.experts)}" if before.experts else "-"
        cells.append(f"{experts:>11}")
    cells.append(f"{f'{kept.num_heads} of {before.num_heads}':>13}")
    cells.append(f"{f'{kept.num_kv_heads} of {before.num_kv_heads}':>11}")
    return "  ".join([*cells, f"{removed:>7.1%}"])


def _reasons(plan: Plan, layer: LayerPlan) -> Iterator[str]:
    names = RECURRENT_NAMES if layer.dense.is_recurrent else AXIS_NAMES
    yield from _removal_lines(layer.removals, names)
    for lowering in layer.lowerings:
        yield _lowering_line(lowering, plan.target)
    for fold in plan.folds:
        if not isinstance(fold, HeadUnitFold) and fold.layer == layer.index:
            yield _fold_line(fold)
    for merge in plan.merges:
        if merge.layer == layer.index:
            first, *others = merge.indices
            yield (
                f"       = {_count(others, AXIS_NAMES[merge.axis])} merged into {first}: "
                f"{format_indices(others)}"
            )
    for revival in layer.revivals:
        yield (
            f"       + {_count(revival.indices, names[revival.axis])} revived: "
            f"{revival.reason}: {format_indices(revival.indices)}"
        )


def _removal_lines(
    removals: Iterable[Removal], names: Mapping[str, str] = AXIS_NAMES
) -> Iterator[str]:
    """Yield a line per axis, rule and cause, in the order of discovery, all passes together."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for removal in removals:
        groups[removal.axis, removal.rule, removal.cause] += removal.indices
    for (axis, rule, cause), indices in groups.items():
        name = names.get(axis) or f"{axis.partition('.')[0]} column"
        yield (
            f"       - {_count(indices, name)}: {cause} (rule {rule}): "
            f"{format_indices(sorted(indices))}"
        )


def _lowering_line(lowering: Lowering, target: Target) -> str:
    roles, worth = " + ".join(lowering.roles), f"{lowering.saved:,} weights"
    if lowering.how == "dense":
        why = f"{worth} cost less than the index work (rule 12, cost {lowering.cost:,})"
        if target.uniform:
            why = f"{worth}, but a stock model has no index vectors (rule 12)"
        return f"       . zero {lowering.side} of {roles} stay: {why}"
    verb = "gathered from the inputs" if lowering.how == "gather" else "scattered to the outputs"
    return (
        f"       ~ {roles}: {len(lowering.kept)} {lowering.side} stored and {verb}, saving {worth} "
        f"(rule 12, cost {lowering.cost:,})"
    )


def _fold_line(fold: LayerFold | BlockFold) -> str:
    if isinstance(fold, BlockFold):
        return f"       = the constant of the {fold.block} block moves into {fold.target}"
    names = {UnitFold: "MLP unit", ValueFold: "value dimension"}
    name = f"{fold.role} column" if isinstance(fold, ColumnFold) else names[type(fold)]
    return f"       = {_count(fold.indices, f'constant {name}')} moved into the {fold.role} bias"


def _model_reasons(plan: Plan, dense: ModelSpec) -> Iterator[str]:
    yield from _removal_lines(plan.removals)
    if dense.family.has_joint_head_norms and any(layer.heads for layer in plan.layers):
        yield "       . heads stay as long as their block does: one norm spans them all (rule 4)"
    added = sorted(set(plan.extra_biases) - dense.extra_biases)
    if added:
        yield f"       = biases added for constants: {', '.join(added)}"


def _count(indices: Sequence[int], name: str) -> str:
    return f"{len(indices)} {name}{'' if len(indices) == 1 else 's'}"
