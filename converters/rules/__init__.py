"""The compiler: zeros of a masked model in, a Plan out.

Each rule is one function, listed in LAYER_RULES or MODEL_RULES.
"""

from converters.rules.compile import LAYER_RULES, MODEL_RULES, compile_plan, find_dead
from converters.rules.facts import ModelFacts, NormZeros, Zeros
from converters.rules.zeros import (
    closed_experts_of_masks,
    joined,
    zeros_of_masks,
    zeros_of_weight,
    zeros_on,
)

__all__ = [
    "LAYER_RULES",
    "MODEL_RULES",
    "ModelFacts",
    "NormZeros",
    "Zeros",
    "closed_experts_of_masks",
    "compile_plan",
    "find_dead",
    "joined",
    "zeros_of_masks",
    "zeros_of_weight",
    "zeros_on",
]
