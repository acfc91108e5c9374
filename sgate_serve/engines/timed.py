"""Loaded models that a benchmark times: seconds of decode steps, of a prefill, of an encoded batch.

The engine builds the batch itself, since not every engine lets its caller drive slots. Token ids
are random, drawn from the caller's generator within the vocabulary.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sgate_serve.engines.contract import Request, SamplingParams
from sgate_serve.engines.model_protocols import EngineModel, PoolingModel
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.slot_engine import SlotEngine


@dataclass(frozen=True)
class TimedSizes:
    """Sizes an engine must support to be timed: batch size, tokens per row, CPU threads.

    `threads` None leaves the number to the engine.
    """

    batch: int
    model_len: int
    threads: int | None = None


class Stopwatch:
    """Times one piece of work after the other, and remembers when the last one was."""

    span_ns = (0, 0)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long the work takes, on the clock of `time.perf_counter_ns`."""
        start = time.perf_counter_ns()
        work()
        self.span_ns = (start, time.perf_counter_ns())
        return (self.span_ns[1] - start) / 1e9


class TimedModel(EngineModel, Protocol):
    """A loaded model that can be timed. Not thread-safe; it is idle between two calls.

    `watch` has timed what the last call returned the seconds of.
    """

    max_model_len: int
    watch: Stopwatch


class TimedDecoder(TimedModel, Protocol):
    """A causal language model that can be timed."""

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Prefill `batch` rows with `context_tokens` each, untimed; time `steps` decode steps."""

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time the prefill of one prompt of `num_tokens`."""

    def generate_seconds(
        self, requests: int, input_tokens: int, output_tokens: int, generator: np.random.Generator
    ) -> float:
        """Time `requests` that arrive together, from their arrival to the last token.

        Each generates exactly `output_tokens` greedily, as the engine schedules them.
        """


class TimedPoolingEngine:
    """A pooling model that can be timed. Queueing and pooling are not timed."""

    def __init__(self, model: PoolingModel) -> None:
        self.name, self.version, self.precision = model.name, model.version, model.precision
        self.max_model_len = model.max_model_len
        self.model, self.watch = model, Stopwatch()

    def encode_seconds(self, batch: int, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one call that encodes `batch` texts of `num_tokens` each."""
        texts = generator.integers(0, self.model.vocab_size, (batch, num_tokens))
        return self.watch.seconds(lambda: self.model.encode(list(texts)))

    def close(self) -> None:
        self.model.close()


class TimedSlotEngine:
    """A `TimedDecoder` over a slot engine.

    Decode steps and prefills are timed on its runner, without scheduling and sampling.
    """

    def __init__(self, engine: SlotEngine) -> None:
        self.name, self.version, self.precision = engine.name, engine.version, engine.precision
        self.max_model_len = engine.max_model_len
        self.model, self.watch = engine, Stopwatch()

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        """Fill slots 0 to `batch`, time `steps` calls that add one token to each, empty them."""
        runner, slots = self.model.runner, range(batch)
        for slot in slots:
            runner.forward([TokenChunk(slot, self._tokens(context_tokens, generator))])
        tokens = self._tokens(batch, generator)
        chunks = [TokenChunk(slot, (token,)) for slot, token in zip(slots, tokens, strict=True)]
        seconds = self.watch.seconds(lambda: [runner.forward(chunks) for _ in range(steps)])
        for slot in slots:
            runner.release(slot)
        return seconds

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        """Time one call that adds the whole prompt to slot 0."""
        chunk = TokenChunk(0, self._tokens(num_tokens, generator))
        seconds = self.watch.seconds(lambda: self.model.runner.forward([chunk]))
        self.model.runner.release(0)
        return seconds

    def generate_seconds(
        self, requests: int, input_tokens: int, output_tokens: int, generator: np.random.Generator
    ) -> float:
        """Queue all requests and step the engine, sampling included, until none is left."""
        sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0)
        queue = [
            Request(str(index), tuple(self._tokens(input_tokens, generator)), sampling)
            for index in range(requests)
        ]

        def generate() -> None:
            for request in queue:
                self.model.add(request)
            while self.model.has_work():
                self.model.step()

        seconds = self.watch.seconds(generate)
        # Idle slots are driven by the methods above.
        self.model.forget_prefixes()
        return seconds

    def close(self) -> None:
        self.model.close()

    def _tokens(self, count: int, generator: np.random.Generator) -> list[int]:
        tokens: list[int] = generator.integers(0, self.model.vocab_size, count).tolist()
        return tokens
