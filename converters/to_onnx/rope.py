"""Rotary position tables for the ONNX graph, for every rope type but dynamic.

The formulas and their order of operations in fp32 are those of transformers'
`modeling_rope_utils`, so that the tables are rounded as in the reference. For longrope, the short
factors are used: they are correct up to the original length, which is the graph's capacity.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.heads import HeadLayout
from sgate_serve.architecture.rope import LONGROPE, ORIGINAL_LENGTH, PARTIAL, YARN
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import EngineError

Floats = NDArray[np.float32]

# How the names of all rotary tables in a graph begin.
TABLE_PREFIX = "rope."


@dataclass(frozen=True)
class RotaryTable:
    """The angle per position and the factor of each pair [width / 2] of a padded head.

    A pair that is not rotary has the angle 0 and the factor 1.
    """

    frequencies: Floats
    amplitudes: Floats

    @classmethod
    def of(cls, rope: Mapping[str, Any], heads: HeadLayout) -> "RotaryTable":
        """Return the table of a layer; raises EngineError as `inverse_frequencies` does."""
        frequencies = inverse_frequencies(rope, heads.rotary_dims)
        amplitudes = np.full(heads.num_pairs, attention_factor(rope), np.float32)
        padding = (0, heads.width // 2 - heads.num_pairs)
        return cls(np.pad(frequencies, padding), np.pad(amplitudes, padding, constant_values=1))

    def cos(self, positions: int) -> Floats:
        """Return [positions, pairs]."""
        return np.cos(self._angles(positions)) * self.amplitudes

    def sin(self, positions: int) -> Floats:
        return np.sin(self._angles(positions)) * self.amplitudes

    def _angles(self, positions: int) -> Floats:
        return np.arange(positions, dtype=np.float32)[:, None] * self.frequencies


def max_positions(spec: ModelSpec) -> int:
    """Return the longest sequence that one rotary table is right for.

    Beyond its original length longrope rotates every token, past ones too, by other factors.
    """
    ropes = [rope for rope in spec.ropes if rope is not None and rope.rope_type == LONGROPE]
    return min([spec.max_positions, *(int(rope.settings[ORIGINAL_LENGTH]) for rope in ropes)])


def inverse_frequencies(rope: Mapping[str, Any], rotary_dims: int) -> Floats:
    """Return the angle per position of each rotary pair, [rotary_dims / 2].

    Raises EngineError for a rope type that the ONNX graph does not support, or a missing value.
    """
    rope_type = rope["rope_type"]
    scaled = _SCALINGS.get(rope_type)
    if scaled is None:
        raise EngineError(
            f"the onnx engine does not support rope_type {rope_type!r} (it has: "
            f"{', '.join(sorted(_SCALINGS))}); use --engine torch"
        )
    exponents = np.arange(0, rotary_dims, 2, dtype=np.float32) / np.float32(rotary_dims)
    try:
        return scaled(np.float32(rope["rope_theta"]) ** exponents, rope).astype(np.float32)
    except KeyError as error:
        raise EngineError(
            f"rope_type {rope_type!r} needs {error} in the config's rope_parameters"
        ) from error


def attention_factor(rope: Mapping[str, Any]) -> float:
    """Return the factor of rotated dimensions under longrope and yarn, 1 for other rope types."""
    if rope["rope_type"] not in (LONGROPE, YARN):
        return 1.0
    stated, factor = rope.get("attention_factor"), rope["factor"]
    if rope["rope_type"] == YARN:
        return _yarn_factor(rope) if stated is None else float(stated)
    if stated is not None or factor <= 1:
        return float(stated or 1.0)
    return math.sqrt(1 + math.log(factor) / math.log(rope["original_max_position_embeddings"]))


def _yarn_factor(rope: Mapping[str, Any]) -> float:
    log = math.log(max(rope["factor"], 1))
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if above and below:
        return float((0.1 * above * log + 1) / (0.1 * below * log + 1))
    return 0.1 * log + 1


def _unscaled(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    return np.float32(1) / periods


def _linear(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    return _unscaled(periods, rope) / np.float32(rope["factor"])


def _proportional(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    """Turn the first pairs alone, at the periods that they have among all."""
    count = int((rope.get(PARTIAL) or 1.0) * 2 * len(periods) // 2)
    turned = np.zeros_like(periods)
    turned[:count] = _unscaled(periods, rope)[:count]
    return turned / np.float32(rope.get("factor") or 1.0)


def _llama3(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    """Slow the low frequencies by `factor`, keep the high ones, blend in between (Llama 3.1)."""
    base = _unscaled(periods, rope)
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    context = float(rope["original_max_position_embeddings"])
    wavelength = np.float32(2 * math.pi) / base
    smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
    slow = base / np.float32(factor)
    blended = (1 - smooth) * base / np.float32(factor) + smooth * base
    inner = np.where(wavelength > context / low, slow, blended)
    return np.where(wavelength < context / high, base, inner)


def _yarn(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    """Slow the low frequencies by `factor`, keep the high ones, with a ramp between the pairs.

    The ramp begins and ends at the pairs that turn `beta_fast` and `beta_slow` times within the
    original length.
    """
    dims, theta, length = 2 * len(periods), rope["rope_theta"], rope[ORIGINAL_LENGTH]
    low, high = (
        dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1)
    )
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high = high + 0.001 if low == high else high
    pairs = np.arange(len(periods), dtype=np.float32)
    kept = 1 - np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    slow = np.float32(1) / (np.float32(rope["factor"]) * periods)
    return np.asarray(slow * (1 - kept) + _unscaled(periods, rope) * kept)


def _longrope(periods: Floats, rope: Mapping[str, Any]) -> Floats:
    short = np.asarray(rope["short_factor"], np.float32)
    if len(short) != len(periods):
        raise EngineError(
            f"rope_type 'longrope' has {len(short)} values of short_factor for {len(periods)} "
            "rotary pairs; correct the config"
        )
    return np.float32(1) / (short * periods)


_SCALINGS = {
    "default": _unscaled,
    "linear": _linear,
    "proportional": _proportional,
    "llama3": _llama3,
    YARN: _yarn,
    LONGROPE: _longrope,
}
