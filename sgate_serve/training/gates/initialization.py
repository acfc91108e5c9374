"""Initial gate logits, and the goals that the budget sets for them."""

from dataclasses import dataclass

import numpy as np
import torch

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.gates.expected_removal import coupled_removal
from sgate_serve.training.gates.relaxations import RELAXATIONS
from sgate_serve.training.masks.coupled_selection import cheapest_num_groups, select_units
from sgate_serve.training.masks.prunable_sites import (
    BLOCK_KINDS,
    GateValues,
    quantiles_by_block,
    row_col_sites,
    unit_sites,
)
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED, TrainOptions


@dataclass(frozen=True)
class GateInitialization:
    """Initial logits by gate key, and how the budget's goals develop.

    `goals` are the fractions to remove of each kind of block, in the order of BLOCK_KINDS; `ramp`
    is the share of the steps over which they rise from 0. `num_groups` is the number of attention
    groups to close in the end, None if the target decides it.
    """

    logits: GateValues
    goals: tuple[float, ...]
    ramp: float
    num_groups: int | None = None


def start_at_mask(
    spec: ModelSpec, scores: GateValues, target: RemovalTarget, options: TrainOptions
) -> GateInitialization:
    """Start at the one-shot mask of the scores, and hold the fractions that it removes.

    The lowest-ranked gates start closed. The distance of each gate from the threshold follows its
    rank, so training can move the gates near it in both directions. Deterministic.
    """
    relaxation = RELAXATIONS[options.gate_relaxation]
    num_groups = num_groups_of(spec, scores, target, options)
    ranking = Ranking(scores, gate_block=options.gate_block, num_groups=num_groups)
    mask = select_units(spec, ranking, target, "").gates
    values = {key: torch.from_numpy(value) for key, value in mask.values.items()}
    goals = dict(zip(BLOCK_KINDS, coupled_removal(spec)(values).tolist(), strict=True))
    logits = {}
    sites = unit_sites(spec)
    ranks = quantiles_by_block(sites, scores)
    num_gates = {
        block: sum(site.gate.num_gates for site in sites if site.block == block)
        for block in BLOCK_KINDS
    }
    for site in sites:
        rank, count = ranks[site.gate.key], num_gates[site.block]
        above = rank + (0.5 - rank) / count - goals[site.block]
        logits[site.gate.key] = (relaxation.closing + relaxation.width * above).astype(np.float32)
    return GateInitialization(logits, tuple(goals.values()), 0.0, num_groups)


def num_groups_of(
    spec: ModelSpec, costs: GateValues, target: RemovalTarget, options: TrainOptions
) -> int | None:
    """Return how many attention groups close with a joint balance; None with an even one.

    Whole experts leave attention alone.
    """
    if not options.is_joint or options.gates != COUPLED:
        return None
    return cheapest_num_groups(spec, costs, target, options.gate_block)


def start_open(
    spec: ModelSpec, scores: GateValues, target: RemovalTarget, options: TrainOptions
) -> GateInitialization:
    """Start all gates open, at samples of one normal distribution in the order of the scores.

    The goal rises over the first half of the steps.
    """
    sites, relaxation = row_col_sites(spec), RELAXATIONS[options.gate_relaxation]
    total = sum(site.gate.num_gates for site in sites)
    samples = np.random.default_rng(options.seed).normal(*relaxation.flat, total)
    levels = np.linspace(0, 1, total)
    logits = {
        key: np.interp(rank, levels, np.sort(samples)).astype(np.float32)
        for key, rank in quantiles_by_block(sites, scores).items()
    }
    return GateInitialization(logits, (target.fraction,) * len(BLOCK_KINDS), ramp=0.5)
