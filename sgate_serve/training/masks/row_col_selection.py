"""Selection of row and column gates: closes the lowest-ranked until the Plan removes the target.

Gates are ranked within their kind of block and share one threshold, so MLP and attention close the
same share. Open gates keep their read-outs, which on a frozen base are scales chosen by the loss:
with all of them set to 1 the model is worse, before and after recovery.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import DOWN, GATE, OUTPUT, UP
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import COLUMNS, ROWS
from sgate_serve.plan.figures import TOLERANCE
from sgate_serve.training.masks.prunable_sites import GateValues, quantiles_by_block, row_col_sites
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.selection import Ranking, Selection, first_reaching
from sgate_serve.training.train_options import ROW_COL

# No linear closes entirely: its best rows and columns stay open, this many of each.
MIN_OPEN = 4
KEPT = f"every linear keeps {MIN_OPEN} rows and {MIN_OPEN} columns"

Flags = NDArray[np.bool_]
Order = NDArray[np.int64]


def select_rows_and_columns(
    spec: ModelSpec, ranking: Ranking, target: RemovalTarget, base_fingerprint: str
) -> Selection:
    """Close the gates of lowest score until they remove the target.

    A gate stays open if closing it would overshoot by more than the tolerance, for example the last
    one that keeps a head alive. Raises TrainingError if no threshold comes within the tolerance.
    """

    def close(order: Order, count: int) -> Selection:
        gates = _gates(spec, ranking, order[:count], base_fingerprint)
        return Selection(gates, target.removed(spec, gates))

    order, done = _closing_order(spec, ranking.scores), 0
    nearest = close(order, done)
    while True:
        count = first_reaching(partial(close, order), done, order.size, target.fraction)
        below, reached = close(order, count - 1), close(order, count)
        nearest = min(nearest, below, reached, key=lambda each: each.miss(target.fraction))
        if nearest.miss(target.fraction) <= TOLERANCE:
            return nearest
        if reached.removed < target.fraction:
            raise target.unreachable(nearest.removed, KEPT)
        order, done = np.delete(order, count - 1), count - 1


def _closing_order(spec: ModelSpec, scores: GateValues) -> Order:
    """Return positions in the concatenated scores, lowest rank first, without protected gates."""
    ranks = quantiles_by_block(row_col_sites(spec), scores)
    protected = protected_gates(spec, scores)
    order: Order = np.argsort(np.concatenate([ranks[key] for key in scores]), kind="stable")
    is_protected: Flags = np.concatenate([protected[key] for key in scores])
    return order[~is_protected[order]]


def protected_gates(spec: ModelSpec, scores: GateValues) -> dict[str, Flags]:
    """Flag the gates that must stay open: the best of each site, on the same units across sites.

    An MLP unit needs its gate row, up row and down column; a value dimension needs its row and a
    column of the output. The protected value dimensions are all in one head, so that every other
    head may close. The best units are those whose weakest gate is strongest.
    """
    flags = {key: _best(values) for key, values in scores.items()}
    for index, layer in enumerate(spec.layers):
        score, protect = partial(_part, scores, spec, index), partial(_set_part, flags, spec, index)
        if layer.mlp_units:
            sides = [(role, ROWS) for role in (UP, GATE) if role in spec.family.linears]
            sides.append((DOWN, COLUMNS))
            best = _best(np.minimum.reduce([score(*side) for side in sides]))
            for side in sides:
                protect(*side, best)
        if layer.num_heads:
            dims = (layer.num_kv_heads, layer.queries_per_kv, layer.head_dim)
            value, output = score(layer.value_role, ROWS), score(OUTPUT, COLUMNS)
            weakest = np.minimum(value.reshape(dims[0], 1, dims[2]), output.reshape(dims))
            kv_head, query = np.unravel_index(weakest.max(axis=2).argmax(), dims[:2])
            best = _best(weakest[kv_head, query])
            values, outputs = np.zeros((dims[0], dims[2]), np.bool_), np.zeros(dims, np.bool_)
            values[kv_head] = outputs[kv_head, query] = best
            protect(layer.value_role, ROWS, values.reshape(-1))
            protect(OUTPUT, COLUMNS, outputs.reshape(-1))
    return flags


def _part(
    values: Mapping[str, NDArray[Any]], spec: ModelSpec, index: int, role: str, side: str
) -> NDArray[Any]:
    """Return one role's gates; fused modules hold the rows of several roles."""
    own = values[f"{spec.family.linear(index, role)}.{side}"]
    return own[spec.role_rows(index, role)] if side == ROWS else own


def _set_part(
    flags: Mapping[str, Flags], spec: ModelSpec, index: int, role: str, side: str, part: Flags
) -> None:
    own = flags[f"{spec.family.linear(index, role)}.{side}"]
    own[spec.role_rows(index, role) if side == ROWS else slice(None)] = part


def _best(values: NDArray[np.float32]) -> Flags:
    flags = np.zeros(values.size, np.bool_)
    flags[np.argsort(-values, kind="stable")[:MIN_OPEN]] = True
    return flags


def _gates(spec: ModelSpec, ranking: Ranking, closed: Order, base_fingerprint: str) -> Gates:
    scores = ranking.scores
    sizes = [array.size for array in scores.values()]
    joined = np.ones(sum(sizes), np.float32)
    if ranking.read_outs is not None:
        joined = np.concatenate([ranking.read_outs[key] for key in scores])
    joined[closed] = 0.0
    ends = np.cumsum(sizes)[:-1]
    return Gates(
        method=ranking.method,
        family=spec.family.name,
        granularity=ROW_COL,
        base_fingerprint=base_fingerprint,
        values=dict(zip(scores, np.split(joined, ends), strict=True)),
    )
