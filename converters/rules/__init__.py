"""The compiler: zeros of a masked model in, a Plan out. RULES 1, 3, 4 and 6, one function each."""

from converters.rules.compile import RULES, compile_plan, find_dead
from converters.rules.facts import LayerFacts, Liveness, Zeros
from converters.rules.zeros import zeros_of_masks, zeros_of_weight

__all__ = [
    "RULES",
    "LayerFacts",
    "Liveness",
    "Zeros",
    "compile_plan",
    "find_dead",
    "zeros_of_masks",
    "zeros_of_weight",
]
