"""Rules 5, 9 and 10: query and key dimensions that cannot change a score, and heads without one."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Context, Death, Flags, LayerState
from sgate_serve.architecture.family import ATTENTION, KEY, QUERY
from sgate_serve.plan import Merge


def dead_key_dims(at: Context) -> Iterator[Death]:
    """A dimension of query and key dies where it adds nothing, or the same to all keys.

    1. Not rotated, no norm on query and key: query rows and biases are zero for the whole group.
    2. Likewise, the key row is zero, with any key bias: it adds one number to all scores of a
       query, which softmax ignores (so the k bias of such a dimension goes too, rule 9). Not under
       soft-capping, which is not invariant.
    3. Rotated: the pair (i, i + rotated/2) dies whole where both rows and biases are zero on one
       side. A zero q_i alone is alive: rotation mixes it with its partner.
    4. With norms on query and key, a row counts in the norm: both sides must be zero.
    """
    layer = at.layer
    if not layer.has(ATTENTION):
        return
    query = _silent_queries(layer)
    key = layer.found[KEY]
    silent = key.silent_rows.reshape(layer.key_dims.shape)
    if layer.family.head_norms:
        both = _in_pairs(layer, query & silent)
        yield Death("key_dims", both, "query and key rows and biases are zero")
        return
    yield Death("key_dims", _in_pairs(layer, query), "query rows and biases are zero")
    is_capped = layer.spec.attention_softcap is not None
    constant = silent if is_capped else key.rows.reshape(silent.shape)
    constant = np.where(_is_rotated(layer), silent, constant)
    yield Death("key_dims", _in_pairs(layer, constant), "key rows are zero")


def uniform_heads(at: Context) -> Iterator[Death]:
    """Query heads of one group whose query is zero all average alike and merge into one (10).

    1. Rows and biases of the query are zero on every dimension that is alive; scores are 0, and
       soft-capping, windows and norms of zero leave them equal.
    2. The output columns of the first become the sum over the merged heads, which 16-bit weights
       could not hold.
    """
    layer = at.layer
    if not layer.has(ATTENTION) or not at.facts.has_exact_sums:
        return
    silent = layer.per_group(layer.found[QUERY].silent_rows)
    uniform = np.all(silent | ~layer.key_dims[:, None, :], axis=2)
    uniform &= layer.heads.reshape(uniform.shape)
    dead, merges = np.zeros(layer.heads.size, np.bool_), []
    for kv in range(len(uniform)):
        members = np.flatnonzero(uniform[kv]) + kv * layer.shape.queries_per_kv
        if len(members) > 1:
            dead[members[1:]] = True
            merges.append(Merge("heads", layer.index, tuple(members.tolist())))
    yield Death("heads", dead, "queries are zero: heads that average alike", merges=tuple(merges))


def constant_query_dims(at: Context) -> Iterator[Death]:
    """Dimensions whose query is a bias alone merge into one of query 1 (rule 10).

    1. They add Σ b_i k_i to a score: one key dimension can hold the sum. Not if rotated or normed,
       nor in 16-bit weights, which would round it.
    2. The biases of several query heads of a group need not be proportional: one head per group.
    """
    layer = at.layer
    if not layer.has(ATTENTION) or not at.facts.has_exact_sums:
        return
    if layer.family.head_norms or layer.shape.queries_per_kv != 1:
        return
    rows = layer.found[QUERY].rows.reshape(layer.key_dims.shape)
    constant = rows & layer.key_dims & ~_is_rotated(layer) & layer.heads[:, None]
    dead, merges = np.zeros_like(constant), []
    for head in np.flatnonzero(constant.sum(axis=1) > 1):
        dims = np.flatnonzero(constant[head])
        dead[head, dims[1:]] = True
        indices = tuple((head * layer.shape.head_dim + dims).tolist())
        merges.append(Merge("key_dims", layer.index, indices))
    yield Death("key_dims", dead, "constant queries merge", merges=tuple(merges))


def _silent_queries(layer: LayerState) -> Flags:
    """Flag [kv, d] dimensions where every living query head of the group is zero, bias included."""
    silent = layer.per_group(layer.found[QUERY].silent_rows)
    return np.asarray(np.all(silent | ~layer.heads.reshape(*silent.shape[:2], 1), axis=1))


def _is_rotated(layer: LayerState) -> Flags:
    return np.arange(layer.shape.head_dim) < layer.spec.rotary_dims(layer.index)


def _in_pairs(layer: LayerState, flags: Flags) -> Flags:
    """Keep a rotated dimension's flag only where its partner has it too, [kv, d]."""
    rotated = layer.spec.rotary_dims(layer.index)
    pairs = flags.copy()
    both = flags[:, : rotated // 2] & flags[:, rotated // 2 : rotated]
    pairs[:, :rotated] = np.tile(both, 2)
    return pairs
