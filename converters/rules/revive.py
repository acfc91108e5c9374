"""Revive dead units where an engine or the target requires a larger width.

The columns that read a revived unit are stored as zeros, so keeping it is always exact. The Plan
records the cost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from converters.rules.facts import Flags, ModelFacts
from converters.rules.layer_state import LayerState
from converters.rules.stream import written_by
from converters.rules.widths import Widths, common_widths, own_heads, own_mlp_units, units_by_expert
from sgate_serve.architecture.family import ATTENTION, DOWN, MLP
from sgate_serve.plan import Revival, Target

Revived = tuple[LayerState, list[Revival]]


def revive(
    facts: ModelFacts, state: LayerState, target: Target, common: Widths | None = None
) -> Revived:
    """Return the state with everything required to stay revived, and the reasons.

    `common` are the widths that all layers have; by default each layer has its own.
    """
    is_idle = not state.has(ATTENTION) and not _writes_only_a_bias(facts, state, ATTENTION)
    if is_idle and not state.shape.has_keys:
        # The KV heads are another layer's, which may keep them.
        state = replace(state, kv_heads=np.zeros_like(state.kv_heads))
    state, constant = keep_constant_blocks(facts, state)
    state, evened = even_out_groups(state, target, common)
    state, aligned = align_mlp(state, target, common)
    return state, [*constant, *evened, *aligned]


def uniform_widths(
    facts: ModelFacts, states: Iterable[LayerState], target: Target
) -> Sequence[Widths]:
    """Return the widths of each layer under `--uniform`; raises PlanError if none suit all."""
    kept = [keep_constant_blocks(facts, state)[0] for state in states]
    return common_widths(facts.spec, kept, target)


def keep_constant_blocks(facts: ModelFacts, state: LayerState) -> Revived:
    """Keep one unit, or one KV group, of a block that still writes its output bias (rule 6).

    Of a mixture, one unit of each expert.

    Nothing is kept if the bias has moved to another tensor, or if a norm after the block has weight
    0 wherever the bias is nonzero.
    """
    revivals: list[Revival] = []
    reason = "the block still writes its output bias"
    if state.shape.experts:
        state, revivals = keep_biased_experts(state)
    elif _writes_only_a_bias(facts, state, MLP):
        state = replace(state, mlp_units=_first(state.mlp_units.size, 1))
        revivals.append(Revival("mlp_units", (0,), reason))
    if _writes_only_a_bias(facts, state, ATTENTION) and not state.kv_heads.any():
        size = state.shape.queries_per_kv
        heads, kv_heads = _first(state.heads.size, size), _first(state.kv_heads.size, 1)
        state = replace(state, heads=heads, kv_heads=kv_heads)
        revivals.append(Revival("heads", tuple(range(size)), reason))
        revivals.append(Revival("kv_heads", (0,), reason))
    return state, revivals


def keep_biased_experts(state: LayerState) -> Revived:
    """Keep one unit of each open expert, where experts have output biases that are not all zero.

    An expert without units has no bias either. Which of them a token gets depends on its choice.
    """
    bias = state.zeros[DOWN].bias if DOWN in state.zeros else np.ones_like(state.hidden)
    if not (~bias & state.hidden).any():
        return state, []
    flags = state.mlp_units.copy()
    parts = units_by_expert(replace(state, mlp_units=flags))  # views
    for part, is_open in zip(parts, state.experts, strict=False):
        if is_open and not part.any():
            part[:1] = True
    revived = np.flatnonzero(flags & ~state.mlp_units)
    if not revived.size:
        return state, []
    reason = "its expert still writes its output bias"
    revival = Revival("mlp_units", tuple(revived.tolist()), reason)
    return replace(state, mlp_units=flags), [revival]


def even_out_groups(state: LayerState, target: Target, common: Widths | None = None) -> Revived:
    """Give every KV head the same number of query heads, and every shard the same number of both.

    1. Engines take one ratio of query heads to KV heads per layer: that of the largest group.
    2. Under tensor parallelism the number of shards divides the query heads. It divides the KV
       heads too, or they divide it and are replicated.
    3. Under `common` widths a removed block comes back, its output bias and norms included.
    """
    widths = own_heads(state, target) if common is None else common
    num_kv, per_kv = widths.kv_heads, widths.queries_per_kv
    shape = state.shape
    groups = state.heads.reshape(shape.num_kv_heads, shape.queries_per_kv).copy()
    more_kv = np.flatnonzero(~state.kv_heads)[: num_kv - int(state.kv_heads.sum())]
    kv_heads = state.kv_heads.copy()
    kv_heads[more_kv] = True
    revived: list[int] = []
    for kv in np.flatnonzero(kv_heads):
        for head in np.flatnonzero(~groups[kv])[: per_kv - int(groups[kv].sum())]:
            groups[kv, head] = True
            revived.append(int(kv) * shape.queries_per_kv + int(head))
    reason = f"each KV head keeps {per_kv} query head{'s' if per_kv > 1 else ''}"
    if common is not None:
        has_types = state.family.has_heads_by_type or state.family.recurrence is not None
        which = "layer of its type" if has_types else "layer"
        reason = f"every {which} has {num_kv * per_kv} query and {num_kv} KV heads"
    if target.tensor_parallel > 1:
        reason += f", for {target.tensor_parallel} shards"
    revivals = [Revival("heads", tuple(revived), reason)] if revived else []
    if more_kv.size:
        revivals.append(Revival("kv_heads", tuple(more_kv.tolist()), reason))
    return replace(state, heads=groups.reshape(-1), kv_heads=kv_heads), revivals


def align_mlp(state: LayerState, target: Target, common: Widths | None = None) -> Revived:
    """Widen the MLP to a multiple of the alignment in every shard, or to the common width.

    Raises PlanError if no width can be shared among the shards.
    """
    flags = state.mlp_units.copy()
    parts = units_by_expert(replace(state, mlp_units=flags))  # views
    wanted = own_mlp_units(state, target) if common is None else _common_units(state, common)
    for number, (part, width) in enumerate(zip(parts, wanted, strict=True)):
        is_closed = number < state.experts.size and not state.experts[number]
        if not is_closed:
            part[np.flatnonzero(~part)[: width - int(part.sum())]] = True
    revived = np.flatnonzero(flags & ~state.mlp_units)
    if not revived.size:
        return state, []
    reason = f"widths are multiples of {target.align * target.tensor_parallel}"
    if common is not None:
        reason = f"every layer has {wanted[0]} MLP units"
        reason = reason if not state.shape.experts else "all experts are as wide as the widest"
    revival = Revival("mlp_units", tuple(revived.tolist()), reason)
    return replace(state, mlp_units=flags), [revival]


def _common_units(state: LayerState, common: Widths) -> list[int]:
    """Return the width of a layer's MLP, or of each of its experts, under common widths."""
    if not state.shape.experts:
        return [common.mlp_units * state.shape.mlp_factor]
    shared = [common.shared_units * state.shape.mlp_factor] if state.shape.shared_units else []
    return [common.expert_units] * len(state.shape.experts) + shared


def _writes_only_a_bias(facts: ModelFacts, state: LayerState, block: str) -> bool:
    return not state.has(block) and bool((written_by(facts, state, block) & state.hidden).any())


def _first(size: int, count: int) -> Flags:
    return np.arange(size) < count
