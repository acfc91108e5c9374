"""Trainable gates of a frozen model: one logit per gate, and the weights they would remove."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sgate_serve.training.gates.expected_removal import Removal
from sgate_serve.training.gates.relaxations import Gaussian, Relaxation
from sgate_serve.training.masks.masking import GateSources, sources_of_sites
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite

Read = Callable[[Tensor], Tensor]


class TrainedGates(nn.Module):
    """One logit per gate of each site, with noise in training mode.

    `pressure` weighs, by gate key, how strongly the budget presses on each gate; the default is 1.
    """

    def __init__(
        self,
        sites: Sequence[PrunableSite],
        logits: GateValues,
        removal: Removal,
        relaxation: Relaxation | None = None,
        pressure: GateValues | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.removal = tuple(sites), removal
        self.relaxation = relaxation or Gaussian()
        self.logits = nn.ParameterList(
            torch.from_numpy(logits[s.gate.key].copy()) for s in self.sites
        )
        pressure = pressure or {}
        self._pressure = [
            torch.from_numpy(pressure[key]) if key in pressure else None for key in self.keys
        ]

    @property
    def keys(self) -> list[str]:
        return [site.gate.key for site in self.sites]

    def sources(self) -> dict[str, GateSources]:
        """Return the functions that read out the gates of each linear, by module name."""
        pairs = ((site.gate, self._source(index)) for index, site in enumerate(self.sites))
        return sources_of_sites(pairs)

    def _source(self, index: int) -> Callable[[], Tensor]:
        def source() -> Tensor:
            read = self.relaxation.sample if self.training else self.relaxation.read_out
            return read(self.logits[index]).repeat_interleave(self.sites[index].gate.repeat)

        return source

    def removed(self) -> Tensor:
        """Return the expected fractions [2] of MLP and attention weights that are removed."""
        return self.removal(self._read(self.relaxation.open_probability))

    def removed_now(self) -> Tensor:
        """Return the fractions [2] that would be removed if training ended now."""
        return self.removal(self._read(lambda logits: (self.relaxation.read_out(logits) > 0) * 1.0))

    def differentiable_removed(self) -> Tensor:
        """Return the fractions [2] whose gradient carries the budget's pressure to the logits."""
        probabilities = self._read(self.relaxation.pressure_probability)
        for key, pressure in zip(self.keys, self._pressure, strict=True):
            if pressure is not None:
                # Scales the gradient and leaves the value as it is.
                probability = probabilities[key]
                weight = pressure.to(probability.device)
                probabilities[key] = weight * probability + (1 - weight) * probability.detach()
        return self.removal(probabilities)

    def scores(self) -> GateValues:
        """Return the logits by gate key, which rank the gates at the end."""
        return self._arrays(lambda logits: logits)

    def read_outs(self) -> GateValues:
        """Return the gates without noise, by gate key; open gates are at least `least_open`."""
        return self._arrays(
            lambda logits: self.relaxation.read_out(logits).clamp(self.relaxation.least_open)
        )

    def _read(self, read: Read) -> dict[str, Tensor]:
        return {key: read(logits) for key, logits in zip(self.keys, self.logits, strict=True)}

    def _arrays(self, read: Read) -> GateValues:
        values = self._read(lambda logits: read(logits.detach()))
        return {key: value.float().cpu().numpy() for key, value in values.items()}
