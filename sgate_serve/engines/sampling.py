"""Choose the next token of each row, in the order of vLLM's sampler.

Raw logits → no stop token before min_tokens, logit_bias, penalties → argmax where the temperature
is 0, else temperature → min_p → top_k → top_p → a draw. A row draws from its own generator and
sees its own logits only, so its tokens do not depend on the rows beside it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import SamplingParams

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass
class Sampler:
    """How one request chooses its tokens, what came so far, and a generator of its own.

    `counts` maps each token of the prompt and of the completion to how often the latter has it.
    """

    params: SamplingParams
    generator: np.random.Generator = field(repr=False)
    counts: dict[int, int]
    num_generated: int = 0

    @classmethod
    def start(cls, params: SamplingParams, prompt: Iterable[int] = ()) -> "Sampler":
        """Begin a request; without a seed its draws are fresh each time."""
        return cls(params, np.random.default_rng(params.seed), dict.fromkeys(prompt, 0))

    def record(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1
        self.num_generated += 1

    @property
    def is_penalized(self) -> bool:
        params = self.params
        neutral = params.presence_penalty == params.frequency_penalty == 0
        return params.repetition_penalty != 1 or not neutral

    @property
    def forbids_stop(self) -> bool:
        return self.num_generated < self.params.min_tokens and bool(self.params.stop_token_ids)


def choose_tokens(logits: Logits, samplers: Sequence[Sampler]) -> list[int]:
    """Return one token id for each row of `logits`, [rows, vocab]; ties go to the lowest id."""
    logits = _adjusted(logits, samplers)
    tokens = [int(token) for token in logits.argmax(axis=-1)]
    sampled = _rows(samplers, lambda sampler: sampler.params.temperature > 0)
    if len(sampled):
        drawing = [samplers[row] for row in sampled]
        weights = _weights(logits[sampled], [sampler.params for sampler in drawing])
        for row, sampler, own in zip(sampled, drawing, weights, strict=True):
            tokens[row] = _draw(own, sampler.params.top_p, sampler.generator.random())
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.record(token)
    return tokens


def _adjusted(logits: Logits, samplers: Sequence[Sampler]) -> Logits:
    """Return the logits that also a greedy row chooses by; the given ones stay as they are."""
    forbidding = _rows(samplers, lambda sampler: sampler.forbids_stop)
    biased = _rows(samplers, lambda sampler: bool(sampler.params.logit_bias))
    penalized = _rows(samplers, lambda sampler: sampler.is_penalized)
    if not len(forbidding) + len(biased) + len(penalized):
        return logits
    logits = logits.copy()
    for row in forbidding:
        # A config may name a stop token that the model does not have.
        stops = np.fromiter(samplers[row].params.stop_token_ids, np.int64)
        logits[row, stops[stops < logits.shape[1]]] = -np.inf
    for row in biased:
        tokens, biases = zip(*samplers[row].params.logit_bias, strict=True)
        logits[row, list(tokens)] += np.array(biases, np.float32)
    if len(penalized):
        _penalize(logits, penalized, [samplers[row] for row in penalized])
    return logits


def _penalize(logits: Logits, rows: Rows, samplers: Sequence[Sampler]) -> None:
    """Apply all penalties of `rows` in place: one gather and one scatter of the tokens they had."""
    lengths = [len(sampler.counts) for sampler in samplers]
    tokens = np.concatenate([np.fromiter(sampler.counts, np.int64) for sampler in samplers])
    counts = np.concatenate([np.fromiter(s.counts.values(), np.float32) for s in samplers])

    def penalty(name: str) -> Logits:
        own = [getattr(sampler.params, name) for sampler in samplers]
        return np.repeat(np.array(own, np.float32), lengths)

    at = (np.repeat(rows, lengths), tokens)
    had, repetition = logits[at], penalty("repetition_penalty")
    had = np.where(had > 0, had / repetition, had * repetition)
    had -= penalty("frequency_penalty") * counts
    had -= penalty("presence_penalty") * (counts > 0)
    logits[at] = had


def _weights(logits: Logits, params: Sequence[SamplingParams]) -> Floats:
    """Return weights [rows, vocab] after temperature, min_p and top_k; the likeliest have 1."""
    temperatures = np.array([own.temperature for own in params])
    min_p = np.array([own.min_p for own in params])
    # The maximum goes first, so that a tiny temperature overflows to weight 0 at worst.
    differences = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    with np.errstate(over="ignore"):
        weights: Floats = np.exp(differences / temperatures[:, None])
    if min_p.any():
        weights[weights < min_p[:, None]] = 0
    vocab = weights.shape[1]
    limited = _rows(params, lambda own: 0 < own.top_k < vocab)
    if len(limited):
        ranks = np.array([vocab - params[row].top_k for row in limited])
        ordered = np.partition(weights[limited], np.unique(ranks), axis=-1)
        bounds = ordered[np.arange(len(limited)), ranks]
        # Tokens as likely as the last one kept are kept too, as in vLLM.
        weights[limited] *= weights[limited] >= bounds[:, None]
    return weights


def _draw(weights: Floats, top_p: float, uniform: float) -> int:
    """Draw by inverse CDF from the fewest likeliest tokens whose share reaches `top_p`."""
    probabilities = weights / weights.sum()
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


def _rows(of: Sequence[Any], has: Callable[[Any], bool]) -> Rows:
    return np.array([row for row, own in enumerate(of) if has(own)], np.int64)
