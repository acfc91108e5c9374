"""Seconds of a model by the widths of its blocks, as measured on one machine and engine.

Times add up: those of each block, which depend on its width alone, and those of everything else.
The width of attention is its number of KV heads, that of an MLP its number of units. Pure.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec

DECODE, PREFILL, MIX, ENCODE = "decode", "prefill", "mix", "encode"
# A mix is one prompt and the steps that answer it; a decode time is that of one step.
MIX_STEPS = 128


@dataclass(frozen=True)
class WidthTimes:
    """Seconds of one block at ascending widths, above those at the first; linear in between."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, measured: Mapping[int, float]) -> "WidthTimes":
        """Make measured seconds by width monotone: noise must not let a narrow block be slower.

        Each value becomes the mean of the largest up to its width and the least from there on.
        """
        widths = sorted(measured)
        seconds = np.array([measured[width] for width in widths])
        largest = np.maximum.accumulate(seconds)
        least = np.minimum.accumulate(seconds[::-1])[::-1]
        monotone = (largest + least) / 2
        return cls(tuple(widths), tuple((monotone - monotone[0]).tolist()))

    def at(self, width: int) -> float:
        return float(np.interp(width, self.widths, self.seconds))

    def check(self) -> None:
        """Raise ValueError unless the times can be those of a block."""
        is_ascending = all(np.diff(self.widths) > 0) and all(np.diff(self.seconds) >= 0)
        if (
            not is_ascending
            or not np.isfinite(self.seconds).all()
            or not self.widths
            or len(self.widths) != len(self.seconds)
        ):
            raise ValueError(f"seconds {self.seconds} do not rise with widths {self.widths}")


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds of one phase: of each block by kind and width, and of everything else together."""

    other: float
    blocks: Mapping[str, WidthTimes]

    def seconds(self, spec: ModelSpec) -> float:
        """Return the predicted seconds of a model with as many layers as the measured one."""
        return self.other + sum(
            times.at(width_of(layer, kind))
            for layer in spec.layers
            for kind, times in self.blocks.items()
        )

    def followed_by(self, next_phase: "PhaseTimes", repeats: int) -> "PhaseTimes":
        """Return the times of this phase and then `repeats` of another, at the same widths."""
        blocks = {}
        for kind, own in self.blocks.items():
            pairs = zip(own.seconds, next_phase.blocks[kind].seconds, strict=True)
            blocks[kind] = WidthTimes(own.widths, tuple(a + repeats * b for a, b in pairs))
        return PhaseTimes(self.other + repeats * next_phase.other, blocks)

    @classmethod
    def from_json(cls, value: Any) -> "PhaseTimes":
        blocks = {
            kind: WidthTimes(
                tuple(map(int, value["blocks"][kind]["widths"])),
                tuple(map(float, value["blocks"][kind]["seconds"])),
            )
            for kind in (ATTENTION, MLP)
        }
        for times in blocks.values():
            times.check()
        other = float(value["other"])
        if not 0 < other < math.inf:
            raise ValueError(f"{other} seconds outside blocks")
        return cls(other, blocks)


@dataclass(frozen=True)
class BlockTimes:
    """The measured phases of one model shape, and where and when (UTC, ISO 8601) they were."""

    engine: str
    precision: str
    machine: str
    measured_at: str
    phases: Mapping[str, PhaseTimes]

    def phase(self, name: str) -> PhaseTimes:
        """Return the times of a phase; a mix follows from the others."""
        if name == MIX:
            return self.phases[PREFILL].followed_by(self.phases[DECODE], MIX_STEPS)
        return self.phases[name]

    def fits(self, spec: ModelSpec) -> bool:
        """Say whether the times reach the widths of a model's layers."""
        return all(
            times.widths[-1] == width_of(spec.layers[0], kind)
            for phase in self.phases.values()
            for kind, times in phase.blocks.items()
        )

    def conditions(self) -> dict[str, str]:
        """Return what the times hold for."""
        return {
            "engine": self.engine,
            "precision": self.precision,
            "machine": self.machine,
            "measured_at": self.measured_at,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "BlockTimes":
        """Read a record; raise KeyError, TypeError, AttributeError or ValueError if damaged."""
        if datetime.fromisoformat(value["measured_at"]).tzinfo is None:
            raise ValueError("a time without a zone")
        phases = {name: PhaseTimes.from_json(own) for name, own in value["phases"].items()}
        if not (phases.keys() >= {DECODE, PREFILL} or ENCODE in phases):
            raise ValueError(f"phases {', '.join(phases)}")
        return cls(
            engine=str(value["engine"]),
            precision=str(value["precision"]),
            machine=str(value["machine"]),
            measured_at=str(value["measured_at"]),
            phases=phases,
        )


def width_of(layer: LayerShape, kind: str) -> int:
    return layer.num_kv_heads if kind == ATTENTION else layer.mlp_units
