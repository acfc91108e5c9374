"""Selection of whole experts: closes the lowest-ranked until the Plan removes the target.

Every mixture keeps as many experts as a token uses. An expert is the smallest step, so the target
is met as nearly as whole experts can. An even balance closes the same number in every layer where
that is near enough: a stock model can hold the result.
"""

from collections.abc import Iterable

import numpy as np

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan.figures import TOLERANCE
from sgate_serve.training.masks.prunable_sites import expert_sites
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.selection import Ranking, Selection, first_reaching, with_order
from sgate_serve.training.train_options import EXPERTS

KEPT = "only whole experts close, and every layer keeps as many as a token uses"


def select_experts(
    spec: ModelSpec, ranking: Ranking, target: RemovalTarget, base_fingerprint: str
) -> Selection:
    """Close the experts of lowest score, of all layers or evenly in each of them.

    Raises TrainingError if all that may close are too few.
    """
    order = _closing_order(spec, ranking)
    if not order:
        raise TrainingError(
            "--gates experts: a token uses every expert of its layer, so none can close; use "
            "--gates coupled"
        )

    def close(count: int) -> Selection:
        values = {key: np.ones(len(score), np.float32) for key, score in ranking.scores.items()}
        for key, expert in order[:count]:
            values[key][expert] = 0.0
        gates = Gates(ranking.method, spec.family.name, EXPERTS, base_fingerprint, values)
        steps = ((key, np.array([expert])) for key, expert in order[count:])
        return with_order(Selection(gates, target.removed(spec, gates)), steps)

    def nearest(counts: Iterable[int]) -> Selection:
        return min(map(close, counts), key=lambda selection: selection.miss(target.fraction))

    most = close(len(order))
    if most.removed < target.fraction - TOLERANCE:
        raise target.unreachable(most.removed, KEPT)
    count = first_reaching(close, 0, len(order), target.fraction)
    if not ranking.is_joint:
        rounds, layers = count // len(ranking.scores), len(ranking.scores)
        alike = nearest(layers * number for number in (max(rounds, 1), rounds + 1))
        if alike.miss(target.fraction) <= TOLERANCE:
            return alike
    return nearest((max(count - 1, 1), count))


def _closing_order(spec: ModelSpec, ranking: Ranking) -> list[tuple[str, int]]:
    """Return (key, expert), the first to close first.

    Evenly means by the share of its layer that is closed then, and by score among equal shares.
    """
    order: list[tuple[float, float, str, int]] = []
    for site in expert_sites(spec):
        key, scores = site.gate.key, ranking.scores[site.gate.key]
        kept = max(spec.layers[site.gate.layer].top_k, 1)
        ranked = np.argsort(scores, kind="stable")[: max(len(scores) - kept, 0)]
        for rank, expert in enumerate(ranked.tolist()):
            share = 0.0 if ranking.is_joint else (rank + 1) / len(scores)
            order.append((share, float(scores[expert]), key, expert))
    return [(key, expert) for *_, key, expert in sorted(order)]
