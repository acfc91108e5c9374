"""The compiler: zeros of a masked model in, a Plan out. Each rule of RULES is one function."""

from converters.rules.compile import RULES, compile_plan, find_dead
from converters.rules.facts import ModelFacts, NormZeros, Zeros
from converters.rules.zeros import zeros_of_masks, zeros_of_weight, zeros_on

__all__ = [
    "RULES",
    "ModelFacts",
    "NormZeros",
    "Zeros",
    "compile_plan",
    "find_dead",
    "zeros_of_masks",
    "zeros_of_weight",
    "zeros_on",
]
