"""Trained gates must earn their place: they stand against the mask that they started from.

A gate feels the slope of the loss where it is, not what it costs to go: a KV group that the next
layers only need some of looks free to close until it is gone. Measured, that shows.
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
from sgate_serve.training.masking import masked_by
from sgate_serve.training.samples import Batch, on_device
from sgate_serve.training.sites import BLOCKS, Scores, unit_sites
from sgate_serve.training.snap import Choice


def best_gates(
    model: nn.Module,
    spec: ModelSpec,
    trained: Choice,
    start: Scores,
    snap: Callable[[Choice], Gates],
    batches: Sequence[Batch],
) -> Gates:
    """Return the mask that loses least, each kind of block by `trained` or by `start`.

    Of equals the one with more of `trained`. Its method says which blocks are as they started.
    """
    contenders: list[Gates] = []
    for has_trained in product((True, False), repeat=len(BLOCKS)):
        kept = [block for block, is_trained in zip(BLOCKS, has_trained, strict=True) if is_trained]
        scores = {
            site.gate.key: (trained.scores if site.block in kept else start)[site.gate.key]
            for site in unit_sites(spec)
        }
        others = " and ".join(block for block in BLOCKS if block not in kept)
        method = f"{trained.method}, {others} as scored first" if others else trained.method
        gates = snap(replace(trained, scores=scores, method=method))
        if not any(_close_the_same(gates, other) for other in contenders):
            contenders.append(gates)
    return min(contenders, key=lambda gates: _mean_loss(model, gates.masks(spec), batches))


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
