"""Rules 5, 9 and 10: query and key dimensions that cannot change a score, and parts that merge."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Flags
from converters.rules.findings import Finding, LayerView
from converters.rules.layer_state import LayerState
from sgate_serve.architecture.family import KEY, OUTPUT_GATE, QUERY
from sgate_serve.plan import Merge


def dead_key_dims(view: LayerView) -> Iterator[Finding]:
    """Remove dimensions of query and key that add zero, or the same number, to all scores (rule 5).

    1. Not rotated, without norms on query and key: the query rows and biases are zero for every
       living head of the group.
    2. Likewise, or the key row is zero, with any key bias: the bias adds one number to all scores
       of a query, and softmax ignores it (rule 9). Under soft-capping, which is not invariant to
       such a shift, the key bias must be zero too; so with sinks, which are not shifted along.
    3. Rotated: rotation mixes the pair (i, i + rotated/2), so both dimensions must be zero on one
       side, biases included.
    4. With norms on query and key, every row counts in the norm: both sides must be zero. A norm
       over all heads still divides by the whole width then, as only stored rows are cut (rule 12).
    5. A layer that reads the keys of another has no rows of them, and keeps its dimensions.
    """
    layer = view.layer
    if not layer.attends or not layer.shape.has_keys:
        return
    query = _silent_queries(layer)
    key = layer.live_zeros[KEY]
    silent = key.silent_rows.reshape(layer.key_dims.shape)
    if layer.family.head_norms:
        both = _in_pairs(layer, query & silent)
        yield Finding("key_dims", both, "query and key rows and biases are zero")
        return
    yield Finding("key_dims", _in_pairs(layer, query), "query rows and biases are zero")
    is_fixed = layer.spec.attention_softcap is not None or layer.family.sinks is not None
    constant = silent if is_fixed else key.rows.reshape(silent.shape)
    constant = np.where(_is_rotated(layer), silent, constant)
    yield Finding("key_dims", _in_pairs(layer, constant), "key rows are zero")


def uniform_heads(view: LayerView) -> Iterator[Finding]:
    """Merge the query heads of a group whose queries are zero: they average alike (rule 10).

    1. Rows and biases of the query are zero on every living dimension. Scores are then 0, and
       remain equal under soft-capping, windows and norms on query and key.
    2. The output columns of the first head become the sum over the merged heads. The stored dtype
       must hold it: 16-bit weights would round it.
    3. No norm spans the queries of all heads: without a head it would divide by a smaller width.
    4. No head has a sink: heads whose sinks differ give the tokens different shares.
    5. No output gate multiplies what each head averages by a number of its own.
    """
    layer = view.layer
    if not layer.attends or not view.facts.has_exact_sums:
        return
    if layer.family.has_joint_head_norms or layer.family.sinks is not None:
        return
    if OUTPUT_GATE in layer.zeros:
        return
    silent = layer.per_group(layer.live_zeros[QUERY].silent_rows)
    uniform = np.all(silent | ~layer.key_dims[:, None, :], axis=2)
    uniform &= layer.heads.reshape(uniform.shape)
    dead, merges = np.zeros(layer.heads.size, np.bool_), []
    for kv in range(len(uniform)):
        members = np.flatnonzero(uniform[kv]) + kv * layer.shape.queries_per_kv
        if len(members) > 1:
            dead[members[1:]] = True
            merges.append(Merge("heads", layer.index, tuple(members.tolist())))
    yield Finding("heads", dead, "queries are zero: heads that average alike", merges=tuple(merges))


def constant_query_dims(view: LayerView) -> Iterator[Finding]:
    """Merge dimensions whose query is only a bias into one with query 1 (rule 10).

    1. They add Σ b_i k_i to a score, and one key dimension can hold the sum.
    2. They are not rotated, and there are no norms on query and key.
    3. Each KV head has one query head: the biases of several need not be proportional.
    4. The stored dtype must hold the sum: 16-bit weights would round it.
    """
    layer = view.layer
    if not layer.attends or not view.facts.has_exact_sums:
        return
    if layer.family.head_norms or layer.shape.queries_per_kv != 1:
        return
    rows = layer.live_zeros[QUERY].rows.reshape(layer.key_dims.shape)
    constant = rows & layer.key_dims & ~_is_rotated(layer) & layer.heads[:, None]
    dead, merges = np.zeros_like(constant), []
    for head in np.flatnonzero(constant.sum(axis=1) > 1):
        dims = np.flatnonzero(constant[head])
        dead[head, dims[1:]] = True
        indices = tuple((head * layer.shape.head_dim + dims).tolist())
        merges.append(Merge("key_dims", layer.index, indices))
    yield Finding("key_dims", dead, "constant queries merge", merges=tuple(merges))


def _silent_queries(layer: LayerState) -> Flags:
    """Flag [kv, d] dimensions where all living query heads of the group are zero, bias included."""
    silent = layer.per_group(layer.live_zeros[QUERY].silent_rows)
    return np.asarray(np.all(silent | ~layer.heads.reshape(*silent.shape[:2], 1), axis=1))


def _is_rotated(layer: LayerState) -> Flags:
    return np.arange(layer.shape.head_dim) < _num_rotated(layer)


def _num_rotated(layer: LayerState) -> int:
    """Count the dimensions that turn: those of whole pairs, also where the config says one less."""
    return 2 * -(-layer.spec.rotary_dims(layer.index) // 2)


def _in_pairs(layer: LayerState, flags: Flags) -> Flags:
    """Keep the flag [kv, d] of a rotated dimension only where its partner has it too."""
    rotated = _num_rotated(layer)
    pairs = flags.copy()
    both = flags[:, : rotated // 2] & flags[:, rotated // 2 : rotated]
    pairs[:, :rotated] = np.tile(both, 2)
    return pairs
