"""Gates folders with an order, of a random ranking, as training selects them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.convert import make_plan, open_masked
from converters.sizes import masked_to
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates.order import num_steps
from sgate_serve.plan.sizes import kept
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.removal_target import WeightTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED


def write_ranked_gates(
    base: Checkpoint,
    folder: Path,
    target: float,
    granularity: str = COUPLED,
    deltas: Any = None,
    **ranking: Any,
) -> Path:
    """Write gates that close the target, and the order of all others."""
    kind, rng = GRANULARITIES[granularity], np.random.default_rng(0)
    scores = {
        site.gate.key: rng.random(site.gate.num_gates).astype(np.float32)
        for site in kind.sites(base.spec)
    }
    fraction, ranked = WeightTarget(target), Ranking(scores, **ranking)
    gates = kind.select(base.spec, ranked, fraction, base.fingerprint).gates
    replace(gates, base_digest=base.digest).write(folder, deltas)
    return folder


def keeps_of(base: Path, gates: Path, *shares: float) -> tuple[float, ...]:
    """Return the fractions that are kept after these shares of all further steps."""
    masked = open_masked(base, gates)
    assert masked.gates is not None
    count = num_steps(masked.gates.order)
    steps = (max(1, int(share * count)) for share in shares)
    return tuple(round(kept(make_plan(masked_to(masked, step)), masked.spec), 4) for step in steps)
