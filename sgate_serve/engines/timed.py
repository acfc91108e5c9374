"""What a comparison asks of every engine: seconds of decode steps and of one prompt.

An engine makes the rows itself, since not every one lets its caller drive slots. Token ids are
random, drawn from the caller's generator within the vocabulary.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sgate_serve.engines.runner import Feed, Runner


@dataclass(frozen=True)
class TimedSizes:
    """What an engine must hold to be timed: rows at once, tokens of a row; None: its own choice."""

    batch: int
    model_len: int
    threads: int | None = None


class Timed(Protocol):
    """A loaded model that can be timed. Not thread-safe; nothing runs on it between two calls."""

    max_model_len: int

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill `batch` rows with `context_tokens` each, untimed; time `steps` decode steps."""

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one prompt of `num_tokens`."""

    def close(self) -> None:
        """Give back the model and its memory; nothing is called afterwards."""


class TimedSlots:
    """A `Timed` over the runner of a slot engine; no scheduler and no sampling is timed."""

    def __init__(self, runner: Runner) -> None:
        self.max_model_len = runner.max_model_len
        self._runner = runner

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill slots 0 to `batch`, time `steps` calls that add one token to each, empty them."""
        runner, slots = self._runner, range(batch)
        for slot in slots:
            runner.forward([Feed(slot, self._tokens(context_tokens, generator))])
        tokens = self._tokens(batch, generator)
        feeds = [Feed(slot, (token,)) for slot, token in zip(slots, tokens, strict=True)]
        start = time.perf_counter()
        for _ in range(steps):
            runner.forward(feeds)
        seconds = time.perf_counter() - start
        for slot in slots:
            runner.release(slot)
        return seconds

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one call that feeds the whole prompt to slot 0."""
        feed = Feed(0, self._tokens(num_tokens, generator))
        start = time.perf_counter()
        self._runner.forward([feed])
        seconds = time.perf_counter() - start
        self._runner.release(0)
        return seconds

    def close(self) -> None:
        """Drop the runner, whose session and KV cache go with it."""
        del self._runner

    def _tokens(self, count: int, generator: np.random.Generator) -> list[int]:
        tokens: list[int] = generator.integers(0, self._runner.vocab_size, count).tolist()
        return tokens
