"""Choose the next token of each row: greedy, or seeded sampling with temperature and top-p.

A row draws from its own generator and sees its own logits only, so its tokens do not depend on
the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import SamplingParams

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """How one request chooses its tokens, and the generator that it alone advances."""

    params: SamplingParams
    generator: np.random.Generator = field(repr=False)

    @classmethod
    def start(cls, params: SamplingParams) -> "Sampler":
        """Begin a request; without a seed its draws are fresh each time."""
        return cls(params, np.random.default_rng(params.seed))


def choose_tokens(logits: Logits, samplers: Sequence[Sampler]) -> list[int]:
    """Return one token id for each row of `logits`, [rows, vocab]; ties go to the lowest id."""
    tokens = [int(token) for token in logits.argmax(axis=-1)]
    for row, sampler in enumerate(samplers):
        if sampler.params.temperature > 0:
            probabilities = _softmax(logits[row], sampler.params.temperature)
            tokens[row] = _draw(probabilities, sampler.params.top_p, sampler.generator.random())
    return tokens


def _softmax(logits: Logits, temperature: float) -> Floats:
    # The maximum goes first, so that a tiny temperature overflows to weight 0 at worst.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return np.asarray(weights / weights.sum())


def _draw(probabilities: Floats, top_p: float, uniform: float) -> int:
    """Draw by inverse CDF from the fewest likeliest tokens whose mass reaches `top_p`."""
    if top_p == 1:
        return _invert(probabilities.cumsum(), uniform)
    # Tokens at or below this bound hold at most 1 - top_p together, so none of them is needed:
    # what is left to sort is short.
    bound = (1 - top_p) / len(probabilities)
    candidates = np.flatnonzero(probabilities > bound)
    ranked = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    mass = probabilities[ranked].cumsum()
    num_kept = int(np.searchsorted(mass, top_p)) + 1
    return int(ranked[_invert(mass[:num_kept], uniform)])


def _invert(mass: Floats, uniform: float) -> int:
    """Return the first index whose cumulated mass exceeds the share `uniform` of the whole."""
    index = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
    # A uniform next to 1 may round up to the whole.
    return min(index, len(mass) - 1)
