"""Choose the next token of each row, in the order of vLLM's sampler.

Raw logits → those that a grammar allows (grammar_mask.py) → allowed_token_ids, bad_words → no stop
token before min_tokens, logit_bias, penalties → argmax if the temperature is 0, else temperature →
min_p → top_k → top_p → a random draw. Each row has its own generator and sees only its own logits,
so its tokens do not depend on the other rows of a batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import GrammarState, SamplingParams
from sgate_serve.engines.drawing import draw

Logits = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass
class Sampler:
    """The sampling state of one request: its parameters, generator, token counts and grammar.

    `counts` maps each token of prompt and completion to its occurrences in the completion, and
    `recent` are the newest tokens of it, as many as the longest of the `bad_words` has.
    """

    params: SamplingParams
    generator: np.random.Generator = field(repr=False)
    counts: dict[int, int]
    num_generated: int = 0
    grammar: GrammarState | None = None
    recent: tuple[int, ...] = ()

    @classmethod
    def start(cls, params: SamplingParams, prompt: Iterable[int] = ()) -> "Sampler":
        """Start a request; without a seed its draws differ from run to run."""
        grammar = None if params.grammar is None else params.grammar.start()
        generator = np.random.default_rng(params.seed)
        return cls(params, generator, dict.fromkeys(prompt, 0), grammar=grammar)

    def record(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1
        self.num_generated += 1
        if self.params.bad_words:
            self.recent = (*self.recent, token)[-self._longest_word :]

    @property
    def is_restricted(self) -> bool:
        return self.params.allowed_token_ids is not None or bool(self.params.bad_words)

    def forbidden(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return the tokens [vocab] that may not be chosen next."""
        allowed = self.params.allowed_token_ids
        is_forbidden = np.full(vocab_size, allowed is not None)
        if allowed is not None:
            is_forbidden[allowed] = False
        for previous in {(), self.recent[-1:]}:
            for *start, last in self._words_after.get(previous, ()):
                if not start or self.recent[-len(start) :] == tuple(start):
                    is_forbidden[last] = True
        return is_forbidden

    @cached_property
    def _words_after(self) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        """The bad words by the token before their last one, if there is one."""
        words: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for word in self.params.bad_words:
            words.setdefault(word[-2:-1], []).append(word)
        return words

    @cached_property
    def _longest_word(self) -> int:
        return max(map(len, self.params.bad_words))

    @property
    def is_penalized(self) -> bool:
        params = self.params
        neutral = params.presence_penalty == params.frequency_penalty == 0
        return params.repetition_penalty != 1 or not neutral

    @property
    def forbids_stop(self) -> bool:
        """Whether no stop token may come yet, unless a grammar allows nothing else."""
        if self.num_generated >= self.params.min_tokens or not self.params.stop_token_ids:
            return False
        if self.grammar is None:
            return True
        others = self.grammar.allowed.copy()
        others[self.stops(len(others))] = False
        return bool(others.any())

    def stops(self, vocab_size: int) -> NDArray[np.int64]:
        """Return the stop tokens; a config may name some outside the vocabulary."""
        stops = np.fromiter(self.params.stop_token_ids, np.int64)
        return stops[stops < vocab_size]


def choose_tokens(logits: Logits, samplers: Sequence[Sampler]) -> list[int]:
    """Return one token id per row of `logits` [rows, vocab]; ties go to the lowest id."""
    tokens = [
        draw(own, sampler.params, sampler.generator)
        if sampler.params.temperature > 0
        else int(own.argmax())
        for own, sampler in zip(_adjusted(logits, samplers), samplers, strict=True)
    ]
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.record(token)
    return tokens


def _adjusted(logits: Logits, samplers: Sequence[Sampler]) -> Logits:
    """Return new logits with forbidden tokens, biases and penalties, which greedy rows use too."""
    restricted = _rows(samplers, lambda sampler: sampler.is_restricted)
    forbidding = _rows(samplers, lambda sampler: sampler.forbids_stop)
    biased = _rows(samplers, lambda sampler: bool(sampler.params.logit_bias))
    penalized = _rows(samplers, lambda sampler: sampler.is_penalized)
    if not len(restricted) + len(forbidding) + len(biased) + len(penalized):
        return logits
    logits = logits.copy()
    for row in restricted:
        logits[row, samplers[row].forbidden(logits.shape[1])] = -np.inf
    for row in forbidding:
        logits[row, samplers[row].stops(logits.shape[1])] = -np.inf
    for row in biased:
        tokens, biases = zip(*samplers[row].params.logit_bias, strict=True)
        logits[row, list(tokens)] += np.array(biases, np.float32)
    if len(penalized):
        _penalize(logits, penalized, [samplers[row] for row in penalized])
    return logits


def _penalize(logits: Logits, rows: Rows, samplers: Sequence[Sampler]) -> None:
    """Apply all penalties of `rows` in place, by one gather and one scatter of their tokens."""
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


def _rows(of: Sequence[Any], has: Callable[[Any], bool]) -> Rows:
    return np.array([row for row, own in enumerate(of) if has(own)], np.int64)
