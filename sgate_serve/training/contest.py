"""Trained gates must earn their place: they stand against the mask that they started from.

A gate feels the slope of the loss where it is, not what it costs to go: a KV group that the next
layers only need some of looks free to close until it is gone. Measured, that shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from sgate_serve.gates import Gates
from sgate_serve.plan import Masks
from sgate_serve.spec import ModelSpec
from sgate_serve.training.masking import constant_sources, masked_linears
from sgate_serve.training.samples import Batch, on_device
from sgate_serve.training.sites import BLOCKS, Scores, unit_sites
from sgate_serve.training.snap import Choice


def best_choice(
    model: nn.Module,
    spec: ModelSpec,
    trained: Choice,
    start: Scores,
    snap: Callable[[Choice], Gates],
    batches: Sequence[Batch],
) -> Choice:
    """Return the choice that loses least on `batches`, `trained` or `start` for each kind of block.

    Of equals the one with more of `trained`. Its method says which blocks are as they started.
    """
    best, least = trained, float("inf")
    for has_trained in product((True, False), repeat=len(BLOCKS)):
        kept = [block for block, is_trained in zip(BLOCKS, has_trained, strict=True) if is_trained]
        scores = {
            site.gate.key: (trained.scores if site.block in kept else start)[site.gate.key]
            for site in unit_sites(spec)
        }
        others = " and ".join(block for block in BLOCKS if block not in kept)
        method = f"{trained.method}, {others} as scored first" if others else trained.method
        choice = replace(trained, scores=scores, method=method)
        loss = _mean_loss(model, snap(choice).masks(spec), batches)
        if loss < least:
            best, least = choice, loss
    return best


@torch.no_grad()
def _mean_loss(model: nn.Module, masks: Masks, batches: Sequence[Batch]) -> float:
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with masked_linears(model, constant_sources(masks, device)):
        losses = [float(model(**on_device(batch, device)).loss) for batch in batches]
    model.train(was_training)
    return sum(losses) / len(losses)
