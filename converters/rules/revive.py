"""Revive dead units where an engine or the target requires a larger width.

The columns that read a revived unit are stored as zeros, so keeping it is always exact. The Plan
records the cost.
"""

from dataclasses import replace

import numpy as np

from converters.rules.facts import Flags, ModelFacts
from converters.rules.layer_state import LayerState
from converters.rules.stream import written_by
from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.errors import PlanError
from sgate_serve.plan import Revival, Target
from sgate_serve.plan.targets import is_shardable

Revived = tuple[LayerState, list[Revival]]


def revive(facts: ModelFacts, state: LayerState, target: Target) -> Revived:
    """Return the state with everything required to stay revived, and the reasons."""
    state, constant = keep_constant_blocks(facts, state)
    state, evened = even_out_groups(state, target)
    state, aligned = align_mlp(state, target)
    return state, [*constant, *evened, *aligned]


def keep_constant_blocks(facts: ModelFacts, state: LayerState) -> Revived:
    """Keep one unit, or one KV group, of a block that still writes its output bias (rule 6).

    Nothing is kept if the bias has moved to another tensor, or if a norm after the block has weight
    0 wherever the bias is nonzero.
    """
    revivals: list[Revival] = []
    reason = "the block still writes its output bias"
    if _writes_only_a_bias(facts, state, MLP):
        state = replace(state, mlp_units=_first(state.mlp_units.size, 1))
        revivals.append(Revival("mlp_units", (0,), reason))
    if _writes_only_a_bias(facts, state, ATTENTION):
        size = state.shape.queries_per_kv
        heads, kv_heads = _first(state.heads.size, size), _first(state.kv_heads.size, 1)
        state = replace(state, heads=heads, kv_heads=kv_heads)
        revivals.append(Revival("heads", tuple(range(size)), reason))
        revivals.append(Revival("kv_heads", (0,), reason))
    return state, revivals


def even_out_groups(state: LayerState, target: Target) -> Revived:
    """Give every KV head the same number of query heads, and every shard the same number of both.

    1. Engines take one ratio of query heads to KV heads per layer: that of the largest group.
    2. Under tensor parallelism the number of shards divides the query heads. It divides the KV
       heads too, or they divide it and are replicated.
    """
    if not state.heads.any():
        return state, []
    groups = state.heads.reshape(state.shape.num_kv_heads, -1).copy()
    num_kv, per_kv = _shardable_counts(state, groups, target.tensor_parallel)
    more_kv = np.flatnonzero(~state.kv_heads)[: num_kv - int(state.kv_heads.sum())]
    kv_heads = state.kv_heads.copy()
    kv_heads[more_kv] = True
    revived: list[int] = []
    for kv in np.flatnonzero(kv_heads):
        for head in np.flatnonzero(~groups[kv])[: per_kv - int(groups[kv].sum())]:
            groups[kv, head] = True
            revived.append(int(kv) * state.shape.queries_per_kv + int(head))
    reason = f"each KV head keeps {per_kv} query head{'s' if per_kv > 1 else ''}"
    if target.tensor_parallel > 1:
        reason += f", for {target.tensor_parallel} shards"
    revivals = [Revival("heads", tuple(revived), reason)] if revived else []
    if more_kv.size:
        revivals.append(Revival("kv_heads", tuple(more_kv.tolist()), reason))
    return replace(state, heads=groups.reshape(-1), kv_heads=kv_heads), revivals


def align_mlp(state: LayerState, target: Target) -> Revived:
    """Round the MLP width up to a multiple of the alignment in every shard.

    The dense width is the most, where shards can divide it. Raises PlanError if none can be met.
    """
    multiple = target.align * target.tensor_parallel
    kept, size = int(state.mlp_units.sum()), state.mlp_units.size
    wanted = -(-kept // multiple) * multiple
    if wanted > size:
        wanted = size
        if wanted % target.tensor_parallel:
            raise PlanError(
                f"--tensor-parallel {target.tensor_parallel}: layer {state.index} keeps {kept} of "
                f"{size} MLP units, and no multiple of {target.tensor_parallel} up to {size} holds "
                "them; give a divisor of the dense width"
            )
    if wanted == kept:
        return state, []
    revived = np.flatnonzero(~state.mlp_units)[: wanted - kept]
    flags = state.mlp_units.copy()
    flags[revived] = True
    revival = Revival("mlp_units", tuple(revived.tolist()), f"widths are multiples of {multiple}")
    return replace(state, mlp_units=flags), [revival]


def _shardable_counts(state: LayerState, groups: Flags, shards: int) -> tuple[int, int]:
    """Return the smallest numbers of KV heads and of query heads for each that can be sharded."""
    least_kv, least = int(state.kv_heads.sum()), int(groups.sum(axis=1).max())
    options = [
        (num_kv, per_kv)
        for num_kv in range(least_kv, state.shape.num_kv_heads + 1)
        for per_kv in range(least, state.shape.queries_per_kv + 1)
        if is_shardable(num_kv * per_kv, num_kv, shards)
    ]
    # The dense layer can be sharded (`check_target`), so there is at least one option.
    return min(options, key=lambda counts: (counts[0] * counts[1] + 2 * counts[0], counts))


def _writes_only_a_bias(facts: ModelFacts, state: LayerState, block: str) -> bool:
    return not state.has(block) and bool((written_by(facts, state, block) & state.hidden).any())


def _first(size: int, count: int) -> Flags:
    return np.arange(size) < count
