"""Rules 2, 3, 4 and 9: value dimensions and heads that cannot reach the output, or never vary."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Context, Death
from sgate_serve.architecture.family import ATTENTION, OUTPUT, VALUE


def dead_value_dims(at: Context) -> Iterator[Death]:
    """A value dimension of a KV head dies when it is always zero or never read.

    3a. Value row and bias are zero: attention averages zeros.
    3b. The output column is zero for every query head of the group that is still alive.
    """
    layer = at.layer
    if not layer.has(ATTENTION):
        return
    silent = layer.found[VALUE].silent_rows.reshape(layer.value_dims.shape)
    yield Death("value_dims", silent, "value rows and biases are zero")
    unread = layer.per_group(layer.found[OUTPUT].columns)
    dead_heads = ~layer.heads.reshape(*unread.shape[:2], 1)
    yield Death("value_dims", np.all(unread | dead_heads, axis=1), "output columns are zero")


def constant_value_dims(at: Context) -> Iterator[Death]:
    """A value dimension without a row is its bias, for every token and whatever attends to it.

    1. Attention weights sum to 1, so the dimension leaves its bias unchanged. It moves into the
       output bias, summed over the query heads of the group (rule 2), before any post-norm.
    2. Attention sinks would take a share of the weights; no supported family has them.
    3. So could the bias of any other row (rule 9); it would save nothing.
    """
    layer = at.layer
    if layer.has(ATTENTION):
        constant = layer.found[VALUE].rows.reshape(layer.value_dims.shape)
        cause = "value rows are zero: a constant"
        yield Death("value_dims", constant, cause, constant=constant)


def dead_heads(at: Context) -> Iterator[Death]:
    """A query head dies when nothing of it reaches the output.

    4. Every output column of the head is zero or belongs to a dead value dimension.
    A head whose query or key is zero is *not* dead: its softmax is uniform, it averages values.
    """
    layer = at.layer
    if not layer.has(ATTENTION):
        return
    unread = layer.per_group(layer.found[OUTPUT].columns)
    silent = ~layer.value_dims[:, None, :]
    yield Death("heads", np.all(unread, axis=2).reshape(-1), "output columns are zero")
    nothing_to_say = np.all(unread | silent, axis=2).reshape(-1)
    yield Death("heads", nothing_to_say, "value dimensions are dead")


def dead_kv_heads(at: Context) -> Iterator[Death]:
    """A KV head dies with the last of its query heads (rule 4): nobody attends to it."""
    layer = at.layer
    if layer.kv_heads.any():
        groups = layer.heads.reshape(layer.shape.num_kv_heads, -1)
        yield Death("kv_heads", ~np.any(groups, axis=1), "no query head is left")
