"""What a comparison asks of every engine: seconds of decode steps, of one prompt, of texts read.

An engine makes the rows itself, since not every one lets its caller drive slots. Token ids are
random, drawn from the caller's generator within the vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


class ReadsTexts(Protocol):
    """What of a `LoadedEncoder` is timed; a baseline of a comparison need have no more."""

    max_model_len: int
    vocab_size: int

    def read(self, prompts: Sequence[NDArray[np.int64]]) -> Sequence[NDArray[np.float32]]: ...

    def close(self) -> None: ...


class TimedEncoder:
    """A loaded encoder that can be timed; no queue and no pooling is."""

    def __init__(self, encoder: ReadsTexts) -> None:
        self.max_model_len = encoder.max_model_len
        self._encoder = encoder

    def read_seconds(self, batch: int, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one call that reads `batch` texts of `num_tokens` each."""
        texts = generator.integers(0, self._encoder.vocab_size, (batch, num_tokens))
        start = time.perf_counter()
        self._encoder.read(list(texts))
        return time.perf_counter() - start

    def close(self) -> None:
        """Give back the model and its memory; nothing is called afterwards."""
        self._encoder.close()


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
