"""Where gate logits start, and what the budget then asks of them."""

from dataclasses import dataclass

import numpy as np
import torch

from sgate_serve.spec import ModelSpec
from sgate_serve.training.coupled_snap import snap_units
from sgate_serve.training.expected_removal import coupled_removal
from sgate_serve.training.options import TrainOptions
from sgate_serve.training.ranks import quantiles_by_block
from sgate_serve.training.relaxations import RELAXATIONS
from sgate_serve.training.sites import BLOCKS, Scores, row_col_sites, unit_sites
from sgate_serve.training.snap import Choice


@dataclass(frozen=True)
class Start:
    """Logits by gate key, the fraction of each kind of block to remove, in the order of BLOCKS, and
    the share of the steps over which the budget's goal rises to that."""

    logits: Scores
    goals: tuple[float, ...]
    ramp: float


def mask_start(spec: ModelSpec, scores: Scores, options: TrainOptions) -> Start:
    """Start at the mask that the scores give at once, and hold what it removes.

    The lowest-ranked gates start closed, as far from the threshold as their rank says: training
    decides about those near it, in both directions. Nothing is drawn.
    """
    relaxation = RELAXATIONS[options.gate_relaxation]
    mask = snap_units(spec, Choice(scores, block=options.gate_block), options.target, "").gates
    values = {key: torch.from_numpy(value) for key, value in mask.values.items()}
    goals = dict(zip(BLOCKS, coupled_removal(spec)(values).tolist(), strict=True))
    logits = {}
    sites = unit_sites(spec)
    ranks = quantiles_by_block(sites, scores)
    for site in sites:
        above = ranks[site.gate.key] - goals[site.block]
        logits[site.gate.key] = (relaxation.closing + relaxation.width * above).astype(np.float32)
    return Start(logits, tuple(goals.values()), ramp=0.0)


def papers_start(spec: ModelSpec, scores: Scores, options: TrainOptions) -> Start:
    """Start at samples of one normal distribution, the lowest where the score is lowest.

    All gates are open; the goal rises over the first half of the steps.
    """
    sites, relaxation = row_col_sites(spec), RELAXATIONS[options.gate_relaxation]
    total = sum(site.gate.num_gates for site in sites)
    samples = np.random.default_rng(options.seed).normal(*relaxation.flat, total)
    levels = np.linspace(0, 1, total)
    logits = {
        key: np.interp(rank, levels, np.sort(samples)).astype(np.float32)
        for key, rank in quantiles_by_block(sites, scores).items()
    }
    return Start(logits, (options.target,) * len(BLOCKS), ramp=0.5)
