"""Trainable gates on a frozen causal LM: a logit each, and the weights that they would close."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sgate_serve.training.expected_removal import Removal
from sgate_serve.training.gate_functions import noisy_read_out, open_probability, read_out
from sgate_serve.training.masking import GateSources, sources_of_sites
from sgate_serve.training.sites import Scores, TrainedSite


class TrainedGates(nn.Module):
    """A logit per gate of each site; training mode adds the noise."""

    def __init__(self, sites: Sequence[TrainedSite], start: Scores, removal: Removal) -> None:
        super().__init__()
        self.sites, self.removal = tuple(sites), removal
        self.logits = nn.ParameterList(torch.from_numpy(start[s.gate.key]) for s in self.sites)

    def sources(self) -> dict[str, GateSources]:
        """Return, per gated linear, the functions that read out its gates."""
        pairs = ((site.gate, self._source(index)) for index, site in enumerate(self.sites))
        return sources_of_sites(pairs)

    def _source(self, index: int) -> Callable[[], Tensor]:
        def source() -> Tensor:
            logits = self.logits[index]
            values = noisy_read_out(logits) if self.training else read_out(logits)
            return values.repeat_interleave(self.sites[index].gate.repeat)

        return source

    def removed(self, noise: float) -> Tensor:
        """Return the expected fraction of weights closed, of MLP and of attention: [2]."""
        pairs = zip(self.sites, self.logits, strict=True)
        return self.removal({s.gate.key: open_probability(a, noise) for s, a in pairs})

    def scores(self) -> Scores:
        """Return the logits, by gate key: what the snap ranks by."""
        pairs = zip(self.sites, self.logits, strict=True)
        return {s.gate.key: a.detach().float().cpu().numpy() for s, a in pairs}
