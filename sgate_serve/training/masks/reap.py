"""REAP: how much a whole expert writes for the tokens that choose it (arXiv 2510.13999).

A score is the mean, over the tokens that are routed to an expert, of its share times the norm of
its output: S_j = 1/|X_j| · Σ_x g_j(x) ‖f_j(x)‖₂. Shares are those that the model multiplies by, so
they add up to 1 for each token where its router normalizes them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sgate_serve.progress import counted
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite
from sgate_serve.training.tasks.training_data import Batch, on_device


@torch.no_grad()
def reap_scores(
    model: nn.Module, sites: Sequence[PrunableSite], batches: Sequence[Batch]
) -> GateValues:
    """Return the score of each expert, by gate key; 0 for one that no token chooses."""
    device = next(model.parameters()).device
    mixtures = [_Mixture(model, site, device) for site in sites]
    try:
        for batch in counted(batches, "batch"):
            given = on_device(batch, device)
            mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
            for mixture in mixtures:
                mixture.is_token = mask.flatten().bool()
            model(**given)
    finally:
        for mixture in mixtures:
            mixture.remove_hooks()
    return {mixture.key: mixture.scores().cpu().numpy() for mixture in mixtures}


class _Mixture:
    """The experts of one layer, the routes of the current batch, and sums over all batches.

    `is_token` [tokens] tells tokens from padding.
    """

    def __init__(self, model: nn.Module, site: PrunableSite, device: torch.device) -> None:
        self.key, self.is_token = site.gate.key, torch.empty(0, dtype=torch.bool)
        self.index, self.shares = torch.empty(0), torch.empty(0)
        # The sum of the scores, and how many tokens it is over.
        self.sums = torch.zeros(2, len(site.experts), dtype=torch.float64, device=device)
        experts = site.experts[0].rsplit(".", 2)[0]
        self._handles = [model.get_submodule(experts).register_forward_pre_hook(self._routes)]
        for number, writer in enumerate(site.experts):
            hook = partial(self._output, number)
            self._handles.append(model.get_submodule(writer).register_forward_hook(hook))

    def _routes(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        _, self.index, self.shares = args

    def _output(self, number: int, module: nn.Module, args: Any, output: Tensor) -> None:
        tokens, places = torch.where(self.index == number)
        norms = output.float().norm(dim=-1) * self.shares[tokens, places]
        is_token = self.is_token[tokens]
        self.sums[0, number] += norms[is_token].sum()
        self.sums[1, number] += is_token.sum()

    def scores(self) -> Tensor:
        means: Tensor = self.sums[0] / self.sums[1].clamp(min=1)
        return means.float()

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
