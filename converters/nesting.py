"""One plan inside another of the same base: what stays, counted in what the larger one keeps.

A folder of the larger plan, rewritten by the result, is exactly what the smaller plan makes of the
base. So the two may differ only in the MLP units, heads, KV groups and experts that stay:

1. What the smaller plan keeps, the larger one keeps, so the folder holds it.
2. Neither has index vectors or merges of heads and key dimensions, which are no slices.
3. Both fold the same constants into the same biases, and keep the same residual dimensions and
   units on top.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.plan import AXES, LayerPlan, Plan, head_dims
from sgate_serve.plan.folds import Indices
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.plan import Axis

HEAD_DIMS: tuple[Axis, ...] = ("value_dims", "key_dims")


def nested_plan(whole: Plan, size: Plan, dense: ModelSpec) -> Plan:
    """Return the plan that rewrites a folder of `whole` into one of `size`.

    `dense` is the base's architecture. Raises PlanError saying why `size` cannot be sliced out.
    """
    obstacle = next(_obstacles(whole, size), None)
    if obstacle is not None:
        raise PlanError(obstacle)
    layers = tuple(map(_nested_layer, whole.layers, size.layers))
    small = pruned_spec(whole, dense)
    return replace(
        size,
        layers=layers,
        dense_hidden=small.hidden_size,
        dense_head_units=small.head_units,
        hidden=None,
        head_units=None,
        folds=(),
    )


def _obstacles(whole: Plan, size: Plan) -> Iterator[str]:
    for larger, smaller in zip(whole.layers, size.layers, strict=True):
        for axis in AXES:
            # A block that is gone counts all dimensions of its heads as alive.
            if axis in HEAD_DIMS and not smaller.survivors("kv_heads"):
                continue
            strays = set(smaller.survivors(axis)) - set(larger.survivors(axis))
            if strays:
                yield (
                    f"layer {larger.index} keeps {axis} {min(strays)}, which the largest size does "
                    "not, to have a width that the target wants; leave out --align, "
                    "--tensor-parallel and --uniform, or train with --gate-block"
                )
        if any(cut.how != "dense" for cut in (*larger.lowerings, *smaller.lowerings)):
            yield f"layer {larger.index} has index vectors; give coupled gates on a dense base"
    if whole.merges or size.merges:
        yield "heads or key dimensions are merged; give coupled gates on a dense base"
    for name in ("folds", "extra_biases", "hidden", "head_units"):
        if getattr(whole, name) != getattr(size, name):
            yield f"it has other {name} than the largest size; give coupled gates on a dense base"


def _nested_layer(whole: LayerPlan, size: LayerPlan) -> LayerPlan:
    """Return a layer of the smaller plan in the coordinates of the larger one."""
    kept = {axis: _kept(whole, axis) for axis in AXES}

    def within(axis: Axis, indices: Indices) -> Indices:
        # A plan may count dimensions of a KV head as alive that goes for its query heads.
        held = np.intersect1d(kept[axis], indices)
        return tuple(np.searchsorted(kept[axis], held).tolist())

    stays: dict[str, Any] = {axis: within(axis, size.survivors(axis)) for axis in AXES}
    revivals = (replace(one, indices=within(one.axis, one.indices)) for one in size.revivals)
    return LayerPlan(
        index=size.index,
        dense=whole.shape,
        **stays,
        revivals=tuple(revivals),
    )


def _kept(layer: LayerPlan, axis: Axis) -> NDArray[np.int64]:
    """Return what a folder holds of an axis, in the original coordinates.

    Dimensions of values and keys are held whole for each KV head, dead ones as zeros.
    """
    if axis in HEAD_DIMS:
        return head_dims(layer.kv_heads, layer.dense.head_dim)
    return np.asarray(layer.survivors(axis), np.int64)
