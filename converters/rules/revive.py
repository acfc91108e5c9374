"""Dead units that stay because a width is wanted: the layer must be one that engines can run.

A dead unit adds exactly zero, so keeping one is always exact. What it costs stands in the Plan.
"""

import numpy as np

from converters.rules.facts import Flags, LayerFacts, Liveness
from sgate_serve.families import DOWN, OUTPUT
from sgate_serve.plan import Revival


def keep_constant_blocks(facts: LayerFacts, live: Liveness) -> tuple[Liveness, list[Revival]]:
    """Keep one unit, or one KV group, of a block whose dead units leave a live output bias.

    The block still writes that constant; dropping it would change the model (rule 6).
    """
    revivals: list[Revival] = []
    reason = "the block still writes its output bias"
    if live.mlp_units.size and not live.mlp_units.any() and not facts.zeros[DOWN].bias.all():
        live = _with_flags(live, mlp_units=_first(live.mlp_units.size, 1))
        revivals.append(Revival("mlp_units", (0,), reason))
    if live.heads.size and not live.heads.any() and not facts.zeros[OUTPUT].bias.all():
        size = facts.shape.queries_per_kv
        heads, kv_heads = _first(live.heads.size, size), _first(live.kv_heads.size, 1)
        live = _with_flags(live, heads=heads, kv_heads=kv_heads)
        revivals.append(Revival("heads", tuple(range(size)), reason))
        revivals.append(Revival("kv_heads", (0,), reason))
    return live, revivals


def even_out_groups(facts: LayerFacts, live: Liveness) -> tuple[Liveness, list[Revival]]:
    """Give every living KV head of a layer as many query heads as the largest group kept.

    Grouped-query attention has one ratio per layer, in every engine.
    """
    if not live.heads.any():
        return live, []
    groups = live.heads.reshape(facts.shape.num_kv_heads, -1).copy()
    largest = int(groups.sum(axis=1).max())
    revived: list[int] = []
    for kv in np.flatnonzero(live.kv_heads):
        missing = largest - int(groups[kv].sum())
        for head in np.flatnonzero(~groups[kv])[:missing]:
            groups[kv, head] = True
            revived.append(int(kv) * facts.shape.queries_per_kv + int(head))
    if not revived:
        return live, []
    reason = f"each KV head keeps {largest} query heads"
    return _with_flags(live, heads=groups.reshape(-1)), [Revival("heads", tuple(revived), reason)]


def align_mlp(live: Liveness, align: int) -> tuple[Liveness, list[Revival]]:
    """Round the MLP width up to a multiple of `align`, or to the dense width if that is less."""
    kept = int(live.mlp_units.sum())
    wanted = min(-(-kept // align) * align, live.mlp_units.size)
    if wanted == kept:
        return live, []
    revived = np.flatnonzero(~live.mlp_units)[: wanted - kept]
    flags = live.mlp_units.copy()
    flags[revived] = True
    reason = f"widths are multiples of {align}"
    revival = Revival("mlp_units", tuple(revived.tolist()), reason)
    return _with_flags(live, mlp_units=flags), [revival]


def _with_flags(live: Liveness, **flags: Flags) -> Liveness:
    return Liveness(**{**vars(live), **flags})


def _first(size: int, count: int) -> Flags:
    return np.arange(size) < count
