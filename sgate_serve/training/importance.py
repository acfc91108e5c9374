"""How much each gate matters before anything is trained: one-shot Fisher scores.

The score of a gate is the mean over batches of (∂loss/∂gate)², the gate held open at 1. It gives
the logits an informed start; from a flat one, trained gates rank worse (FACTS.md).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from sgate_serve.training.masking import masked_linears, sources_of_sites
from sgate_serve.training.sites import Scores, TrainedSite

FISHER_BATCHES = 24


def fisher_scores(
    model: nn.Module, sites: Sequence[TrainedSite], batches: Sequence[torch.Tensor]
) -> Scores:
    """Return a score per gate, by gate key, over `batches` of token ids [batch, seq_len]."""
    device = next(model.parameters()).device
    gates = [torch.ones(s.gate.num_gates, device=device, requires_grad=True) for s in sites]
    totals = [torch.zeros_like(gate, requires_grad=False) for gate in gates]
    pairs = zip(sites, gates, strict=True)
    sources = sources_of_sites(
        (site.gate, partial(gate.repeat_interleave, site.gate.repeat)) for site, gate in pairs
    )
    with masked_linears(model, sources):
        for batch in batches:
            ids = batch.to(device)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            for total, gradient in zip(totals, torch.autograd.grad(loss, gates), strict=True):
                total += gradient.detach() ** 2
    scored = zip(sites, totals, strict=True)
    return {site.gate.key: (total / len(batches)).cpu().numpy() for site, total in scored}
