"""Rules 2, 3, 4 and 9: value dimensions and heads that do not reach the output or are constant."""

from collections.abc import Iterator

import numpy as np

from converters.rules.findings import Finding, LayerView
from converters.rules.layer_state import LayerState
from converters.rules.stream import block_output
from sgate_serve.architecture.family import ATTENTION, OUTPUT, OUTPUT_GATE, VALUE


def dead_value_dims(view: LayerView) -> Iterator[Finding]:
    """Remove value dimensions of a KV head that are always zero or never read (rule 3).

    1. The value row and its bias are zero: attention averages zeros.
    2. The output column is zero for every query head of the group that is still alive. A norm over
       the values of a head counts those that are not read: then all of the head's are unread.
    3. Where keys are values, the rows are those of the keys.
    4. Where several layers read the same values, one does not know what the others leave unread;
       those without values of their own have no rows.
    """
    layer = view.layer
    if not layer.attends or not layer.shape.has_keys:
        return
    silent = layer.live_zeros[layer.shape.value_role].silent_rows.reshape(layer.value_dims.shape)
    yield Finding("value_dims", silent, "value rows and biases are zero")
    if view.sharing:
        return
    unread = layer.per_group(layer.live_zeros[OUTPUT].columns)
    removed_heads = ~layer.heads.reshape(*unread.shape[:2], 1)
    unread = np.all(unread | removed_heads, axis=1)
    if layer.family.has_value_norm:
        unread &= unread.all(axis=1, keepdims=True)
    yield Finding("value_dims", unread, "output columns are zero")


def constant_value_dims(view: LayerView) -> Iterator[Finding]:
    """Remove value dimensions whose row is zero; the constant moves to the output bias (rule 2).

    1. Attention weights sum to 1, so the dimension equals its bias for every token. The constant
       is summed over the query heads of the group, and added before a norm after the block.
    2. Attention sinks (GPT-OSS) take a share of the weights, which differs by token: with them such
       a dimension stays.
    3. No norm over the values of a head divides it by what the others are for a token.
    4. An output gate would multiply the constant by what each token says.
    5. The bias of a dimension that stays could move as well (rule 9), but that would save nothing.
    """
    layer = view.layer
    if layer.family.sinks is not None or layer.family.has_value_norm:
        return
    if layer.attends and OUTPUT_GATE not in layer.zeros:
        constant = layer.live_zeros[VALUE].rows.reshape(layer.value_dims.shape)
        cause = "value rows are zero: a constant"
        yield Finding("value_dims", constant, cause, constant=constant)


def dead_heads(view: LayerView) -> Iterator[Finding]:
    """Remove query heads of which nothing reaches the output (rule 4).

    1. Every output column of the head is zero or belongs to a dead value dimension.
    2. A head whose query or key is zero is *not* dead: its softmax is uniform, so it averages the
       values.
    3. Where one norm spans the queries, or the keys, of all heads, those of every head count in the
       scores of the others: heads are removed only all together.
    """
    layer = view.layer
    if not layer.attends:
        return
    unread = layer.per_group(layer.live_zeros[OUTPUT].columns)
    silent = ~layer.value_dims[:, None, :]
    for unused, cause in (
        (unread, "output columns are zero"),
        (unread | silent, "value dimensions are dead"),
    ):
        dead = np.all(unused, axis=2).reshape(-1)
        if dead.all() or not layer.family.has_joint_head_norms:
            yield Finding("heads", dead, cause)


def dead_kv_heads(view: LayerView) -> Iterator[Finding]:
    """Remove KV heads without a living query head (rule 4).

    1. Only the query heads of its group read a KV head, those of all layers that share it.
    2. Shared ones stay if one of the layers writes an output bias: without heads it still attends
       for that.
    """
    layer = view.layer
    if layer.kv_heads.any() and not any(map(_writes_a_bias, view.sharing)):
        readers = view.sharing or (layer,)
        groups = (one.heads.reshape(layer.shape.num_kv_heads, -1).any(axis=1) for one in readers)
        yield Finding("kv_heads", ~np.logical_or.reduce([*groups]), "no query head is left")


def _writes_a_bias(layer: LayerState) -> bool:
    has_bias = layer.spec.has_bias(layer.index, OUTPUT)
    return has_bias and bool((block_output(layer, ATTENTION) & layer.hidden).any())
