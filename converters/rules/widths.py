"""The least widths that hold the survivors of a layer, or of all layers alike, and suit a target.

What they ask for beyond the survivors is revived: `converters.rules.revive`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product

from converters.rules.facts import Flags
from converters.rules.layer_state import LayerState
from sgate_serve.architecture.family import LINEAR_ATTENTION
from sgate_serve.architecture.sgate_config import narrower_windows
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.errors import PlanError
from sgate_serve.plan import Target
from sgate_serve.plan.targets import is_shardable

# Stands for a width that a kind of layer does not have, where others may have any.
ANY = sys.maxsize


@dataclass(frozen=True)
class Widths:
    """Widths of one layer, or of every layer: KV heads, query heads for each, MLP units.

    Of an MLP that is a multiple of what a stock config states, the width that it states.
    `expert_units` and `shared_units` are those of each expert and of the shared one in mixtures,
    `experts` their number.
    """

    kv_heads: int
    queries_per_kv: int
    mlp_units: int
    experts: int = 0
    expert_units: int = 0
    shared_units: int = 0


def own_heads(state: LayerState, target: Target) -> Widths:
    """Return a layer's own least numbers of heads; none if its attention is removed."""
    least = _kept(state)
    if not least.kv_heads:
        return least
    # The dense layer can be sharded (`check_target`), so there is at least one choice.
    return min(_head_counts(least, _of_shape(state.shape), target), key=_cost)


def own_mlp_units(state: LayerState, target: Target) -> list[int]:
    """Return a layer's own least MLP width, 0 if its MLP is removed; of a mixture, each expert's.

    Raises PlanError, naming the layer, if no width can be shared among the shards.
    """
    return [
        _mlp_units(int(units.sum()), units.size, target, f"layer {state.index} keeps")
        for units in units_by_expert(state)
    ]


def units_by_expert(state: LayerState) -> list[Flags]:
    """Return the flags of a layer's MLP units, of a mixture those of each expert."""
    spans = state.shape.expert_spans if state.shape.experts else [slice(None)]
    return [state.mlp_units[span] for span in spans]


def common_widths(
    spec: ModelSpec, states: Sequence[LayerState], target: Target
) -> Sequence[Widths]:
    """Return, for each layer, the least widths that a stock class accepts (`--uniform`).

    1. They are the same in all layers. Where layers without a window have heads of their own, only
       the number of query heads is, and the KV heads are the same in all layers of a type. The
       heads of recurrent layers are the same among these.
    2. They hold the survivors of every layer. A block that no layer has any more keeps one unit, or
       one head.
    3. No layer gets wider than it is before pruning.
    4. The stock class accepts the number of heads, and of experts (`is_stock_shape`).
    5. Where its config says how many times as wide as another the shared expert is, it is.
    Raises PlanError, naming the layer or the sizes, if there are no such widths.
    """
    _check_windows(spec)
    _check_counts(states, spec)
    kinds = [spec.head_type(state.index) for state in states]
    bounds = {
        kind: _bounds(spec, [own for own in states if spec.head_type(own.index) == kind])
        for kind in dict.fromkeys(kinds)
    }
    least = reduce(partial(_each, max), (each[0] for each in bounds.values()))
    most = reduce(partial(_each, min), (each[1] for each in bounds.values()))
    for state in states:
        _check_room(state, replace(least, kv_heads=1, queries_per_kv=1))
    units = _common_units(spec, least, most, target)
    choices = list[list[Widths]]()
    for heads in _choices_of_heads(bounds, target):
        of = {kind: replace(own, **units, experts=least.experts) for kind, own in heads.items()}
        widths = [of[kind] for kind in kinds]
        if _is_stock(spec, widths):
            choices.append(widths)
    if not choices:
        raise PlanError(
            f"--uniform: a layer keeps {least.kv_heads} KV heads with up to "
            f"{least.queries_per_kv} query heads each, and a stock {spec.head.model_class} of "
            f"hidden size {spec.hidden_size} has no number of heads that holds them; leave "
            "--uniform out"
        )
    return min(choices, key=lambda widths: tuple(map(sum, zip(*map(_cost, widths), strict=True))))


def _choices_of_heads(
    bounds: Mapping[str, tuple[Widths, Widths]], target: Target
) -> Iterator[dict[str, Widths]]:
    """Yield numbers of heads for each type of layers; all that attend have as many queries."""
    counts = {kind: [*_head_counts(*each, target)] for kind, each in bounds.items()}
    if LINEAR_ATTENTION in counts:
        counts[LINEAR_ATTENTION] = [min(counts[LINEAR_ATTENTION], key=_cost)]
    for heads in product(*counts.values()):
        found = dict(zip(counts, heads, strict=True))
        attending = (own for kind, own in found.items() if kind != LINEAR_ATTENTION)
        if len({own.kv_heads * own.queries_per_kv for own in attending}) <= 1:
            yield found


def _bounds(spec: ModelSpec, states: Sequence[LayerState]) -> tuple[Widths, Widths]:
    """Return the least widths that hold the survivors of some layers, and the most they can have.

    Raises PlanError, naming the layer, if one was never as wide.
    """
    least, most = _least(spec), _of_shape(states[0].shape)
    for state in states:
        least = _each(max, least, _kept(state))
        most = _each(min, most, _of_shape(state.shape))
    for state in states:
        _check_room(state, least)
    return least, most


def _common_units(spec: ModelSpec, least: Widths, most: Widths, target: Target) -> dict[str, int]:
    """Return the least widths of MLPs, of experts and of shared ones that a stock class takes."""
    units = {
        name: _mlp_units(getattr(least, name), getattr(most, name), target, "a layer keeps")
        for name in ("mlp_units", "expert_units", "shared_units")
        if getattr(least, name)
    }
    if spec.family.mixture is not None and spec.family.mixture.shared_multiple is not None:
        units |= _multiple_units(units, most, least.experts, target)
    return units


def _kept(state: LayerState) -> Widths:
    """Return the widths that hold the survivors of one layer."""
    shape = state.shape
    per_kv = state.heads.reshape(shape.num_kv_heads, shape.queries_per_kv).sum(axis=1)
    # KV heads that other layers read have a query head here, too.
    num_kv = int(state.kv_heads.sum())
    heads, units = (num_kv, max(int(per_kv.max(initial=0)), min(num_kv, 1))), units_by_expert(state)
    counts = [int(flags.sum()) for flags in units]
    return _widths(shape, heads, counts, int(state.experts.sum()))


def _of_shape(shape: LayerShape) -> Widths:
    heads = (shape.num_kv_heads, shape.queries_per_kv)
    return _widths(shape, heads, shape.mlp_widths, len(shape.experts), absent=ANY)


def _widths(
    shape: LayerShape,
    heads: tuple[int, int],
    units: Sequence[int],
    num_experts: int,
    absent: int = 0,
) -> Widths:
    """Return the widths of one layer; `absent` stands for those that its kind does not have.

    `heads` are the KV heads, and the query heads for each; `units` those of each expert.
    """
    if not shape.experts:
        return Widths(*heads, -(-units[0] // shape.mlp_factor), absent, absent, absent)
    routed = max(units[: len(shape.experts)])
    shared = -(-units[len(shape.experts)] // shape.mlp_factor) if shape.shared_units else absent
    return Widths(*heads, absent, num_experts, routed, shared)


def _least(spec: ModelSpec) -> Widths:
    """Return the least widths that a stock class takes: one of each kind of part that it has."""
    kinds = [_of_shape(shape) for shape in spec.layers]
    names = ("mlp_units", "expert_units", "shared_units")
    return Widths(1, 1, **{n: int(any(getattr(k, n) != ANY for k in kinds)) for n in names})


def _multiple_units(
    units: Mapping[str, int], most: Widths, num_experts: int, target: Target
) -> dict[str, int]:
    """Return the least widths of experts of which that of the shared one is a multiple."""
    if not units.keys() >= {"expert_units", "shared_units"}:
        return {}
    multiple, choices = target.align * target.tensor_parallel, list[tuple[int, int, int]]()
    for width in range(units["expert_units"], most.expert_units + 1):
        shared = -(-units["shared_units"] // width) * width
        is_aligned = width % multiple == 0 or width in (units["expert_units"], most.expert_units)
        if is_aligned and width % target.tensor_parallel == 0 and shared <= most.shared_units:
            choices.append((num_experts * width + shared, width, shared))
    if not choices:
        raise PlanError(
            f"--uniform: a layer keeps {units['shared_units']} units of its shared expert, and no "
            f"multiple of the {units['expert_units']} to {most.expert_units} units of another "
            f"holds them in {target.tensor_parallel} shards; leave --uniform out"
        )
    _, width, shared = min(choices)
    return {"expert_units": width, "shared_units": shared}


def _check_counts(states: Sequence[LayerState], spec: ModelSpec) -> None:
    """Raise PlanError if layers keep different numbers of experts, or too few for a stock class.

    Closed experts cannot be taken back.
    """
    counts = {state.index: int(state.experts.sum()) for state in states if state.shape.experts}
    if len(set(counts.values())) > 1:
        (one, few), (other, many) = (
            choose(counts.items(), key=lambda item: item[1]) for choose in (min, max)
        )
        raise PlanError(
            f"--uniform: layer {one} keeps {few} experts and layer {other} keeps {many}, and a "
            "closed expert cannot come back; close as many in every layer (sgate train --balance "
            "even, with a target that whole experts meet), or leave --uniform out"
        )
    least = 1 if spec.family.mixture is None else spec.family.mixture.least_experts
    if short := [index for index, count in counts.items() if count < least]:
        raise PlanError(
            f"--uniform: layer {short[0]} keeps {counts[short[0]]} expert, and a closed expert "
            f"cannot come back; the router of a stock {spec.head.model_class} chooses among at "
            f"least {least}: leave --uniform out"
        )


def _each(choose: Callable[[int, int], int], one: Widths, other: Widths) -> Widths:
    return Widths(*(choose(*pair) for pair in zip(_sizes(one), _sizes(other), strict=True)))


def _sizes(widths: Widths) -> tuple[int, ...]:
    return tuple(vars(widths).values())


def _check_windows(spec: ModelSpec) -> None:
    """Raise PlanError for windows of several sizes, of which a stock class has one."""
    if narrower_windows(spec.windows):
        sizes = sorted({window for window in spec.windows if window is not None})
        raise PlanError(
            f"--uniform: there are windows of {' and '.join(map(str, sizes))} tokens, and a stock "
            f"{spec.head.model_class} has those of one size; leave --uniform out"
        )


def _check_room(state: LayerState, least: Widths) -> None:
    """Raise PlanError if a layer was never as wide as others are after pruning."""
    names = (
        *("KV heads", "query heads for each KV head", "MLP units"),
        *("experts", "units of an expert", "units of its shared expert"),
    )
    dense = _of_shape(state.shape)
    for name, needed, size in zip(names, _sizes(least), _sizes(dense), strict=True):
        if needed > size:
            raise PlanError(
                f"--uniform: layer {state.index} has {size} {name} before pruning, but another "
                f"keeps {needed}; leave --uniform out, or give the dense checkpoint that this one "
                "was made from"
            )


def _mlp_units(kept: int, size: int, target: Target, who: str) -> int:
    """Round an MLP width up to a multiple of the alignment in every shard.

    The dense width `size` is the most, where shards can divide it.
    """
    multiple = target.align * target.tensor_parallel
    wanted = -(-kept // multiple) * multiple
    if wanted <= size:
        return wanted
    if size % target.tensor_parallel:
        raise PlanError(
            f"--tensor-parallel {target.tensor_parallel}: {who} {kept} of {size} MLP units, and no "
            f"multiple of {target.tensor_parallel} up to {size} holds them; give a divisor of the "
            "dense width"
        )
    return size


def _head_counts(least: Widths, most: Widths, target: Target) -> Iterator[Widths]:
    """Yield the numbers of KV heads, and of query heads for each, that can be sharded."""
    for kv_heads in range(least.kv_heads, most.kv_heads + 1):
        for per_kv in range(least.queries_per_kv, most.queries_per_kv + 1):
            if is_shardable(kv_heads * per_kv, kv_heads, target.tensor_parallel):
                yield Widths(kv_heads, per_kv, 0)


def _cost(widths: Widths) -> tuple[int, ...]:
    kv_heads, per_kv = widths.kv_heads, widths.queries_per_kv
    return (kv_heads * per_kv + 2 * kv_heads, kv_heads, per_kv)


def _is_stock(spec: ModelSpec, widths: Sequence[Widths]) -> bool:
    layers = tuple(map(with_widths, spec.layers, widths))
    return is_stock_shape(replace(spec, layers=layers))


def with_widths(shape: LayerShape, widths: Widths) -> LayerShape:
    """Return a layer's shape with common widths, those of its own kind."""
    heads = widths.kv_heads * widths.queries_per_kv
    found = replace(shape, num_heads=heads, num_kv_heads=widths.kv_heads)
    if not shape.experts:
        return replace(found, mlp_units=widths.mlp_units * shape.mlp_factor)
    shared = widths.shared_units * shape.mlp_factor if shape.shared_units else 0
    units = widths.experts * widths.expert_units + shared
    return replace(
        found,
        mlp_units=units,
        experts=(widths.expert_units,) * widths.experts,
        top_k=min(shape.top_k, widths.experts),
    )
