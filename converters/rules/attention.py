"""Rules 3 and 4: value dimensions, query heads and KV heads that cannot reach the output."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Death, LayerFacts, Liveness
from sgate_serve.families import OUTPUT, VALUE


def dead_value_dims(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """A value dimension of a KV head dies when it is always zero or never read.

    3a. Value row and bias are zero: attention averages zeros.
    3b. The output column is zero for every query head of the group that is still alive.
    """
    if not live.kv_heads.any():
        return
    shape = facts.shape
    silent = facts.zeros[VALUE].silent_rows.reshape(shape.num_kv_heads, shape.head_dim)
    yield Death("value_dims", silent, "value rows and biases are zero")
    unread = facts.query_columns(facts.zeros[OUTPUT].columns)
    dead_heads = ~live.heads.reshape(shape.num_kv_heads, shape.queries_per_kv, 1)
    yield Death("value_dims", np.all(unread | dead_heads, axis=1), "output columns are zero")


def dead_heads(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """A query head dies when nothing of it reaches the output.

    4. Every output column of the head is zero or belongs to a dead value dimension.
    A head whose query or key is zero is *not* dead: its softmax is uniform, it averages values.
    """
    if not live.heads.any():
        return
    unread = facts.query_columns(facts.zeros[OUTPUT].columns)
    silent = ~live.value_dims[:, None, :]
    yield Death("heads", np.all(unread, axis=2).reshape(-1), "output columns are zero")
    nothing_to_say = np.all(unread | silent, axis=2).reshape(-1)
    yield Death("heads", nothing_to_say, "value rows and biases are zero")


def dead_kv_heads(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """A KV head dies with the last of its query heads (rule 4): nobody attends to it."""
    if live.kv_heads.any():
        groups = live.heads.reshape(facts.shape.num_kv_heads, -1)
        yield Death("kv_heads", ~np.any(groups, axis=1), "no query head is left")
