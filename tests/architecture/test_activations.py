"""The facts about activations: RULES 1's whitelist, and that the functions agree with the flags."""

import numpy as np
import pytest

from sgate_serve.architecture.activations import (
    ACTIVATIONS,
    apply_activation,
    is_zero_at_zero,
    is_zero_below_zero,
)
from sgate_serve.errors import PlanError

WHITELIST = {
    "silu",
    "swish",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
    "quick_gelu",
} | {"relu", "relu2", "relu6", "tanh", "mish", "hardswish", "leaky_relu", "linear"}


def test_the_whitelist_is_that_of_the_rules() -> None:
    assert {name for name in ACTIVATIONS if is_zero_at_zero(name)} == WHITELIST
    assert {name for name in ACTIVATIONS if is_zero_below_zero(name)} == {"relu", "relu2", "relu6"}


@pytest.mark.parametrize("name", ["laplace", "sqrtsoftplus", "xielu"])
def test_nothing_is_known_of_an_activation_outside_the_table(name: str) -> None:
    assert not is_zero_at_zero(name) and not is_zero_below_zero(name)
    with pytest.raises(PlanError, match=f"'{name}'.*cannot be folded .known: gelu, "):
        apply_activation(name, np.zeros(1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_flags_are_facts_about_the_function(name: str) -> None:
    at_zero = apply_activation(name, np.zeros(1))[0]
    below = apply_activation(name, -np.logspace(-3, 2, 50))
    assert is_zero_at_zero(name) == (at_zero == 0)
    # Others vanish in places only: far below zero, or where they underflow.
    assert is_zero_below_zero(name) == bool((below == 0).all())
