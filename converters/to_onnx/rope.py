"""Rotary position tables for the ONNX graph: rope types default, linear and llama3.

The formulas and their order of operations in fp32 are those of transformers'
`modeling_rope_utils`, so that the tables agree with the reference to the last rounding.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.heads import padded_head_dim
from sgate_serve.errors import EngineError

Floats = NDArray[np.float32]


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int) -> Floats:
    """Return the [head_dim / 2] angle per position of each rotary pair.

    Raises EngineError for a rope type that the ONNX graph does not hold, or a missing value.
    """
    rope_type = rope["rope_type"]
    scale = _SCALINGS.get(rope_type)
    if scale is None or rope.get("partial_rotary_factor", 1.0) != 1.0:
        what = f"rope_type {rope_type!r}" if scale is None else "partial_rotary_factor"
        supported = ", ".join(sorted(_SCALINGS))
        raise EngineError(
            f"the onnx engine does not support {what} (it has: {supported}, over the whole head); "
            "use --engine torch"
        )
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = np.float32(1) / np.float32(rope["rope_theta"]) ** exponents
    try:
        return scale(base, rope).astype(np.float32)
    except KeyError as error:
        raise EngineError(
            f"rope_type {rope_type!r} needs {error} in the config's rope_parameters"
        ) from error


def rotary_angles(frequencies: Floats, positions: int) -> Floats:
    """Return the angles [positions, padded head width / 2]; the padding turns nothing."""
    half = len(frequencies)
    padded = np.pad(frequencies, (0, padded_head_dim(2 * half) // 2 - half))
    return np.arange(positions, dtype=np.float32)[:, None] * padded


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
