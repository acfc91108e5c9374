"""The least widths that hold the survivors of a layer, or of all layers alike, and suit a target.

What they ask for beyond the survivors is revived: `converters.rules.revive`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from converters.rules.layer_state import LayerState
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec, is_stock_shape
from sgate_serve.errors import PlanError
from sgate_serve.plan import Target
from sgate_serve.plan.targets import is_shardable


@dataclass(frozen=True)
class Widths:
    """Widths of one layer, or of every layer: KV heads, query heads for each, MLP units."""

    kv_heads: int
    queries_per_kv: int
    mlp_units: int


def own_heads(state: LayerState, target: Target) -> Widths:
    """Return a layer's own least numbers of heads; none if its attention is removed."""
    least = _kept(state)
    if not least.kv_heads:
        return least
    # The dense layer can be sharded (`check_target`), so there is at least one choice.
    return min(_head_counts(least, _of_shape(state.shape), target), key=_cost)


def own_mlp_units(state: LayerState, target: Target) -> int:
    """Return a layer's own least MLP width, 0 if its MLP is removed.

    Raises PlanError, naming the layer, if no width can be shared among the shards.
    """
    kept, size = int(state.mlp_units.sum()), state.mlp_units.size
    return _mlp_units(kept, size, target, f"layer {state.index} keeps")


def common_widths(spec: ModelSpec, states: Sequence[LayerState], target: Target) -> Widths:
    """Return the least widths that every layer can have and a stock class accepts (`--uniform`).

    1. They hold the survivors of every layer. A block that no layer has any more keeps one unit, or
       one head.
    2. No layer gets wider than it is before pruning.
    3. The stock class accepts the number of heads (`is_stock_shape`).
    Raises PlanError, naming the layer or the sizes, if there are no such widths.
    """
    least, most = Widths(1, 1, 1), _of_shape(spec.layers[0])
    for state in states:
        least = _each(max, least, _kept(state))
        most = _each(min, most, _of_shape(state.shape))
    for state in states:
        _check_room(state, least)
    units = _mlp_units(least.mlp_units, most.mlp_units, target, "a layer keeps")
    choices = [
        replace(heads, mlp_units=units)
        for heads in _head_counts(least, most, target)
        if _is_stock(spec, replace(heads, mlp_units=units))
    ]
    if not choices:
        raise PlanError(
            f"--uniform: a layer keeps {least.kv_heads} KV heads with up to "
            f"{least.queries_per_kv} query heads each, and a stock {spec.head.model_class} of "
            f"hidden size {spec.hidden_size} has no number of heads that holds them; leave "
            "--uniform out"
        )
    return min(choices, key=_cost)


def _kept(state: LayerState) -> Widths:
    """Return the widths that hold the survivors of one layer."""
    shape = state.shape
    per_kv = state.heads.reshape(shape.num_kv_heads, shape.queries_per_kv).sum(axis=1)
    most = int(per_kv.max(initial=0))
    return Widths(int(state.kv_heads.sum()), most, int(state.mlp_units.sum()))


def _of_shape(shape: LayerShape) -> Widths:
    return Widths(shape.num_kv_heads, shape.queries_per_kv, shape.mlp_units)


def _each(choose: Callable[[int, int], int], one: Widths, other: Widths) -> Widths:
    return Widths(*(choose(*pair) for pair in zip(_sizes(one), _sizes(other), strict=True)))


def _sizes(widths: Widths) -> tuple[int, ...]:
    return tuple(vars(widths).values())


def _check_room(state: LayerState, least: Widths) -> None:
    """Raise PlanError if a layer was never as wide as others are after pruning."""
    names = ("KV heads", "query heads for each KV head", "MLP units")
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
    kv_heads, per_kv, _ = _sizes(widths)
    return (kv_heads * per_kv + 2 * kv_heads, kv_heads, per_kv)


def _is_stock(spec: ModelSpec, widths: Widths) -> bool:
    shape = replace(
        spec.layers[0],
        num_heads=widths.kv_heads * widths.queries_per_kv,
        num_kv_heads=widths.kv_heads,
        mlp_units=widths.mlp_units,
    )
    return is_stock_shape(replace(spec, layers=(shape,) * len(spec.layers)))
