"""Rotary position tables for the ONNX graph: rope types default, linear and llama3.

The formulas and their order of operations in fp32 are those of transformers'
`modeling_rope_utils`, so that the tables agree with the reference to the last rounding.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.heads import HeadLayout
from sgate_serve.errors import EngineError

Floats = NDArray[np.float32]


def inverse_frequencies(rope: Mapping[str, Any], rotary_dims: int) -> Floats:
    """Return the [rotary_dims / 2] angle per position of each rotary pair.

    Raises EngineError for a rope type that the ONNX graph does not hold, or a missing value.
    """
    rope_type = rope["rope_type"]
    scale = _SCALINGS.get(rope_type)
    if scale is None:
        raise EngineError(
            f"the onnx engine does not support rope_type {rope_type!r} (it has: "
            f"{', '.join(sorted(_SCALINGS))}); use --engine torch"
        )
    exponents = np.arange(0, rotary_dims, 2, dtype=np.float32) / np.float32(rotary_dims)
    base = np.float32(1) / np.float32(rope["rope_theta"]) ** exponents
    try:
        return scale(base, rope).astype(np.float32)
    except KeyError as error:
        raise EngineError(
            f"rope_type {rope_type!r} needs {error} in the config's rope_parameters"
        ) from error


def padded_frequencies(frequencies: Floats, layout: HeadLayout) -> Floats:
    """Return a frequency for each pair of a padded head; what is no rotary pair does not turn."""
    return np.pad(frequencies, (0, layout.width // 2 - len(frequencies)))


def rotary_angles(frequencies: Floats, positions: int) -> Floats:
    """Return the angles [positions, pairs]."""
    return np.arange(positions, dtype=np.float32)[:, None] * frequencies


def _unscaled(base: Floats, rope: Mapping[str, Any]) -> Floats:
    return base


def _linear(base: Floats, rope: Mapping[str, Any]) -> Floats:
    return base / np.float32(rope["factor"])


def _llama3(base: Floats, rope: Mapping[str, Any]) -> Floats:
    """Slow the low frequencies by `factor`, keep the high ones, blend in between (Llama 3.1)."""
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


_SCALINGS = {"default": _unscaled, "linear": _linear, "llama3": _llama3}
