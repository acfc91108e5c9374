"""Activations by their transformers names, in float64: what a constant unit is worth.

transformers' `ACT2FN`; those that are polynomials of x and tanh follow its formulas.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import PlanError

Floats = NDArray[np.float64]


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Floats) -> Floats:
    return np.asarray(np.logaddexp(0, x))


def _tanh_gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)


ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def apply_activation(name: str, x: Floats) -> Floats:
    """Return act(x), elementwise; raise PlanError for an activation that is not known here."""
    if name not in ACTIVATIONS:
        raise PlanError(
            f"hidden_act {name!r}: a unit that is constant under it cannot be folded (known: "
            f"{', '.join(sorted(ACTIVATIONS))}); leave that unit's gates open"
        )
    return np.asarray(ACTIVATIONS[name](x))
