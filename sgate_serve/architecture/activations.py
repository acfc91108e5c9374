"""The activations that conversion knows, by their transformers names, and the facts about them.

They compute in float64 the value of a unit whose input is constant. The formulas are those of
transformers' `ACT2FN`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import PlanError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    """One activation, elementwise, and where it is exactly zero: rule 1 rests on both flags."""

    function: Callable[[Floats], Floats]
    # act(0) = 0: a unit whose row and bias are zero is silent.
    zero_at_zero: bool = True
    # act(x) = 0 for every x ≤ 0: a unit that is a constant below zero is silent too.
    zero_below_zero: bool = False


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Floats) -> Floats:
    return np.asarray(np.logaddexp(0, x))


_erf = np.vectorize(math.erf, otypes=[np.float64])

_SILU = Activation(lambda x: x * _sigmoid(x))
_TANH_GELU = Activation(
    lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
)
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": _SILU,
    "swish": _SILU,
    "gelu": Activation(lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "quick_gelu": Activation(lambda x: x * _sigmoid(1.702 * x)),
    "relu": Activation(lambda x: np.maximum(x, 0), zero_below_zero=True),
    "relu2": Activation(lambda x: np.maximum(x, 0) ** 2, zero_below_zero=True),
    "relu6": Activation(lambda x: np.clip(x, 0, 6), zero_below_zero=True),
    "leaky_relu": Activation(lambda x: np.where(x > 0, x, 0.01 * x)),
    "linear": Activation(lambda x: x),
    "tanh": Activation(np.tanh),
    "sigmoid": Activation(_sigmoid, zero_at_zero=False),
    "mish": Activation(lambda x: x * np.tanh(_softplus(x))),
    "hardswish": Activation(lambda x: x * np.clip(x + 3, 0, 6) / 6),
}


def is_zero_at_zero(name: str) -> bool:
    """Say whether act(0) = 0 is known; False for an activation that is not in the table."""
    return name in ACTIVATIONS and ACTIVATIONS[name].zero_at_zero


def is_zero_below_zero(name: str) -> bool:
    """Say whether act(x) = 0 is known for every x ≤ 0; False if it is not in the table."""
    return name in ACTIVATIONS and ACTIVATIONS[name].zero_below_zero


def apply_activation(name: str, x: Floats) -> Floats:
    """Return act(x), elementwise; raise PlanError for an activation that is not in the table."""
    if name not in ACTIVATIONS:
        raise PlanError(
            f"hidden_act {name!r}: a unit that is constant under it cannot be folded (known: "
            f"{', '.join(sorted(ACTIVATIONS))}); leave that unit's gates open"
        )
    return np.asarray(ACTIVATIONS[name].function(x))
