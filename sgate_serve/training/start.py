"""Where gate logits start, and what the budget then asks of them."""

from dataclasses import dataclass

import numpy as np
import torch

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.coupled_snap import cheapest_num_groups, snap_units
from sgate_serve.training.expected_removal import coupled_removal
from sgate_serve.training.relaxations import RELAXATIONS
from sgate_serve.training.sites import BLOCKS, Scores, quantiles_by_block, row_col_sites, unit_sites
from sgate_serve.training.snap import Choice
from sgate_serve.training.train_options import TrainOptions


@dataclass(frozen=True)
class Start:
    """Logits by gate key, the fraction of each kind of block to remove, in the order of BLOCKS, and
    the share of the steps over which the budget's goal rises to that.

    `num_groups` is the number of attention groups to close in the end, if that is decided.
    """

    logits: Scores
    goals: tuple[float, ...]
    ramp: float
    num_groups: int | None = None


def mask_start(spec: ModelSpec, scores: Scores, options: TrainOptions) -> Start:
    """Start at the mask that the scores give at once, and hold what it removes.

    The lowest-ranked gates start closed, as far from the threshold as their rank says: training
    decides about those near it, in both directions. Nothing is drawn.
    """
    relaxation = RELAXATIONS[options.gate_relaxation]
    num_groups = num_groups_of(spec, scores, options)
    choice = Choice(scores, block=options.gate_block, num_groups=num_groups)
    mask = snap_units(spec, choice, options.target, "").gates
    values = {key: torch.from_numpy(value) for key, value in mask.values.items()}
    goals = dict(zip(BLOCKS, coupled_removal(spec)(values).tolist(), strict=True))
    logits = {}
    sites = unit_sites(spec)
    ranks = quantiles_by_block(sites, scores)
    num_gates = {
        block: sum(site.gate.num_gates for site in sites if site.block == block) for block in BLOCKS
    }
    for site in sites:
        rank, count = ranks[site.gate.key], num_gates[site.block]
        above = rank + (0.5 - rank) / count - goals[site.block]
        logits[site.gate.key] = (relaxation.closing + relaxation.width * above).astype(np.float32)
    return Start(logits, tuple(goals.values()), 0.0, num_groups)


def num_groups_of(spec: ModelSpec, costs: Scores, options: TrainOptions) -> int | None:
    """Return how many attention groups close where the balance is joint; None where it is even."""
    if not options.is_joint:
        return None
    return cheapest_num_groups(spec, costs, options.target, options.gate_block)


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
