"""Convert the gate logits of other tools to our gates, checked against the base."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import FLOAT_DTYPES, TensorInfo
from sgate_serve.errors import GatesError
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import GateSite, gate_sites, linear_sites

Values = NDArray[np.float32]


@dataclass
class ForeignGates:
    """The contents of another tool's files under our names, collected tensor by tensor.

    `logits` by gate key (`<module>.rows`, `<module>.columns`), `deltas` by tensor name of the base.
    """

    method: str
    location: Path
    logits: dict[str, TensorInfo] = field(default_factory=dict)
    deltas: dict[str, TensorInfo] = field(default_factory=dict)

    def add_delta(self, name: str, info: TensorInfo) -> None:
        """Add a replacement value; raise GatesError if there is one already."""
        if name in self.deltas:
            raise GatesError(
                f"{info.file}: {info.name} and {self.deltas[name].name} both replace {name}; "
                "remove one"
            )
        self.deltas[name] = info


def to_gates(found: ForeignGates, base: Checkpoint) -> Gates:
    """Return row-col gates bound to `base`.

    Such files carry no fingerprint, so names and shapes are all that can be checked. Biases stay as
    trained: row gates multiply them when they are folded. Raises GatesError for a linear that the
    base lacks, a wrong number of gates, or NaN or infinite logits.
    """
    sites = gate_sites(base.spec)
    values = {
        key: read_out(info, _site(key, info, sites, base)) for key, info in found.logits.items()
    }
    return Gates(
        method=found.method,
        family=base.spec.family.name,
        granularity="row-col",
        base_fingerprint=base.fingerprint,
        values=values,
        deltas=found.deltas,
        source=str(found.location),
    )


def read_out(info: TensorInfo, site: GateSite) -> Values:
    """Return clamp(tanh(logits) + 0.5, 0, 1) in fp32: exactly 0 iff tanh(logit) ≤ −0.5.

    `info` is of shape [n] or [1, n]. Raises GatesError unless it holds n finite floats.
    """
    expected = (site.num_gates,)
    if info.shape not in (expected, (1, *expected)) or info.dtype not in FLOAT_DTYPES:
        raise GatesError(
            f"{info.file}: {info.name} is {info.dtype} of shape {list(info.shape)}, but "
            f"{site.module} has {site.num_gates} {site.side}; give the base that it was trained on"
        )
    logits = info.read().reshape(-1).astype(np.float32)
    if not np.isfinite(logits).all():
        raise GatesError(
            f"{info.file}: {info.name} holds NaN or infinite logits; save or train them again"
        )
    opened: Values = np.clip(np.tanh(logits) + np.float32(0.5), 0, 1)
    return opened


def _site(key: str, info: TensorInfo, sites: Mapping[str, GateSite], base: Checkpoint) -> GateSite:
    if key in sites:
        return sites[key]
    linear = next((site.module for site in linear_sites(base.spec)), "none, as it has no blocks")
    raise GatesError(
        f"{info.file}: {info.name} gates {key.rpartition('.')[0]}, which is not a linear of "
        f"{base.folder}; expected one like {linear}; give the base that it was trained on"
    )
