"""Trainable gates on a frozen model: a logit each, and the weights that they would close."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sgate_serve.training.expected_removal import Removal
from sgate_serve.training.masking import GateSources, sources_of_sites
from sgate_serve.training.relaxations import Gaussian, Relaxation
from sgate_serve.training.sites import Scores, TrainedSite

Read = Callable[[Tensor], Tensor]


class TrainedGates(nn.Module):
    """A logit per gate of each site; training mode adds the noise.

    `pull` scales, by gate key, how strongly the budget pulls on each gate; without it all alike.
    """

    def __init__(
        self,
        sites: Sequence[TrainedSite],
        start: Scores,
        removal: Removal,
        relaxation: Relaxation | None = None,
        pull: Scores | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.removal = tuple(sites), removal
        self.relaxation = relaxation or Gaussian()
        self.logits = nn.ParameterList(
            torch.from_numpy(start[s.gate.key].copy()) for s in self.sites
        )
        pull = pull or {}
        self._pull = [torch.from_numpy(pull[key]) if key in pull else None for key in self.keys]

    @property
    def keys(self) -> list[str]:
        return [site.gate.key for site in self.sites]

    def sources(self) -> dict[str, GateSources]:
        """Return, per gated linear, the functions that read out its gates."""
        pairs = ((site.gate, self._source(index)) for index, site in enumerate(self.sites))
        return sources_of_sites(pairs)

    def _source(self, index: int) -> Callable[[], Tensor]:
        def source() -> Tensor:
            read = self.relaxation.sample if self.training else self.relaxation.read_out
            return read(self.logits[index]).repeat_interleave(self.sites[index].gate.repeat)

        return source

    def removed(self) -> Tensor:
        """Return the expected fraction of weights closed, of MLP and of attention: [2]."""
        return self.removal(self._read(self.relaxation.open_chance))

    def removed_now(self) -> Tensor:
        """Return the fractions [2] that would go if training ended here: what reads out as 0."""
        return self.removal(self._read(lambda logits: (self.relaxation.read_out(logits) > 0) * 1.0))

    def pressed(self) -> Tensor:
        """Return the fractions [2] through which the budget pulls: their gradient is the pull."""
        chances = self._read(self.relaxation.pressure)
        for key, pull in zip(self.keys, self._pull, strict=True):
            if pull is not None:
                # The value stays, the gradient is scaled.
                chance, weight = chances[key], pull.to(chances[key].device)
                chances[key] = weight * chance + (1 - weight) * chance.detach()
        return self.removal(chances)

    def scores(self) -> Scores:
        """Return the logits, by gate key: what the snap ranks by."""
        return self._arrays(lambda logits: logits)

    def read_outs(self) -> Scores:
        """Return the gates without noise, by gate key; an open one keeps at least `least_open`."""
        return self._arrays(lambda a: self.relaxation.read_out(a).clamp(self.relaxation.least_open))

    def _read(self, read: Read) -> dict[str, Tensor]:
        return {key: read(logits) for key, logits in zip(self.keys, self.logits, strict=True)}

    def _arrays(self, read: Read) -> Scores:
        values = self._read(lambda logits: read(logits.detach()))
        return {key: value.float().cpu().numpy() for key, value in values.items()}
