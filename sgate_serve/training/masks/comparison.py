"""Compares the mask of trained gates with the one-shot mask they started from.

A gate's gradient is the local slope of the loss, not the cost of closing the gate. A KV group that
later layers need only in part seems free to close until it is gone; measuring the loss shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.plan import Masks
from sgate_serve.progress import counted
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.masks.prunable_sites import BLOCK_KINDS, GateValues, unit_sites
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.tasks.training_data import Batch, on_device


def best_mask(
    model: nn.Module,
    spec: ModelSpec,
    trained: Ranking,
    initial_scores: GateValues,
    select: Callable[[Ranking], Gates],
    batches: Sequence[Batch],
) -> Gates:
    """Return the mask of least loss, with each kind of block ranked by `trained` or as initially.

    Ties go to the mask with more of `trained`. The method of the result names the kinds of block
    that were ranked by their initial scores.
    """
    candidates: list[Gates] = []
    for has_trained in product((True, False), repeat=len(BLOCK_KINDS)):
        kept = [
            block for block, is_trained in zip(BLOCK_KINDS, has_trained, strict=True) if is_trained
        ]
        scores = {
            site.gate.key: (trained.scores if site.block in kept else initial_scores)[site.gate.key]
            for site in unit_sites(spec)
        }
        others = " and ".join(block for block in BLOCK_KINDS if block not in kept)
        method = f"{trained.method}, {others} as scored first" if others else trained.method
        gates = select(replace(trained, scores=scores, method=method))
        if not any(_close_the_same(gates, other) for other in candidates):
            candidates.append(gates)
    return min(
        counted(candidates, "mask"), key=lambda gates: _mean_loss(model, gates.masks(spec), batches)
    )


def _close_the_same(gates: Gates, other: Gates) -> bool:
    return all(np.array_equal(values, other.values[key]) for key, values in gates.values.items())


@torch.no_grad()
def _mean_loss(model: nn.Module, masks: Masks, batches: Sequence[Batch]) -> float:
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with masked_by(model, masks):
        losses = [float(model(**on_device(batch, device)).loss) for batch in batches]
    model.train(was_training)
    return sum(losses) / len(losses)
