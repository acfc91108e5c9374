"""The embedded engine for texts that are read, not continued: classifiers and embeddings.

Each step reads one batch. Batches are made of the oldest waiting requests, a few batches' worth at
a time, sorted by length: texts of one batch need little padding, and no request waits for those
that came later than its own few batches.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import EngineStats, PooledOutput, PoolingRequest
from sgate_serve.engines.engine_options import EncoderOptions
from sgate_serve.engines.onnx.reader import OnnxReader, ReaderInfo, Row
from sgate_serve.engines.requests import check_pooling_request
from sgate_serve.environment import num_cpus
from sgate_serve.onnx_format.names import EMBED
from sgate_serve.text.pooling import Pooling

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

# A CPU's matrix products gain little beyond this many rows, and who comes next waits for a batch.
TOKENS_PER_CPU, MIN_BATCH_TOKENS = 256, 512
# How many batches' worth of requests are sorted together.
SORTED_BATCHES = 4


@dataclass(frozen=True)
class EncoderSizes:
    """The longest text, and the tokens of all texts of a batch (one text may be longer)."""

    max_model_len: int
    batch_tokens: int


class OnnxEncoder:
    """A `PoolingEngine` over an `OnnxReader`."""

    name = "onnx"

    def __init__(self, reader: OnnxReader, sizes: EncoderSizes, pooling: Pooling) -> None:
        self.reader, self.pooling, self.batch_tokens = reader, pooling, sizes.batch_tokens
        self.max_model_len, self.vocab_size = sizes.max_model_len, reader.info.vocab_size
        self._waiting: deque[PoolingRequest] = deque()
        self._batches: deque[list[PoolingRequest]] = deque()

    @classmethod
    def load(
        cls, folder: Path, options: EncoderOptions | None = None, pooling: Pooling | None = None
    ) -> "OnnxEncoder":
        """Load `model.onnx` from `folder`; raise EngineError if it is missing or does not fit."""
        options, pooling = options or EncoderOptions(), pooling or Pooling()
        threads = options.threads or num_cpus()
        reader = OnnxReader.load(folder, threads)
        sizes = choose_sizes(options, reader.info, pooling)
        logger.info(
            "onnx engine: weights %s, max_model_len=%d batch_tokens=%d threads=%d",
            reader.info.weights,
            sizes.max_model_len,
            sizes.batch_tokens,
            threads,
        )
        return cls(reader, sizes, pooling)

    def add(self, request: PoolingRequest) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_pooling_request(
            request, self.max_model_len, self.vocab_size, self.reader.info.num_types
        )
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Drop a waiting request; unknown ids are ignored."""
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        kept = ([r for r in batch if r.request_id != request_id] for batch in self._batches)
        self._batches = deque(batch for batch in kept if batch)

    def step(self) -> list[PooledOutput]:
        """Read one batch; see the top of this file for whose turn it is."""
        if not self._batches:
            self._batches.extend(self._next_batches())
        if not self._batches:
            return []
        batch = self._batches.popleft()
        values = self.reader.read([_row(request) for request in batch])
        return [
            PooledOutput(request.request_id, self._pooled(own))
            for request, own in zip(batch, values, strict=True)
        ]

    def has_work(self) -> bool:
        return bool(self._waiting or self._batches)

    def stats(self) -> EngineStats:
        return EngineStats(0, len(self._waiting) + sum(map(len, self._batches)), 0.0)

    def read(
        self,
        prompts: Sequence[NDArray[np.int64]],
        types: Sequence[NDArray[np.int64] | None] | None = None,
    ) -> list[Floats]:
        """Read prompts in one call, past the queue: logits [labels] or last states [s, hidden]."""
        types = types or [None] * len(prompts)
        return self.reader.read([Row(*pair) for pair in zip(prompts, types, strict=True)])

    def close(self) -> None:
        """Drop the reader, whose model goes with it; nothing is called afterwards."""
        del self.reader

    def _pooled(self, values: Floats) -> Floats:
        is_states = self.reader.info.kind == EMBED
        return self.pooling.apply(values) if is_states else np.array(values)

    def _next_batches(self) -> list[list[PoolingRequest]]:
        """Take the oldest requests and cut them into batches, that of the oldest one first."""
        taken: list[PoolingRequest] = []
        left = SORTED_BATCHES * self.batch_tokens
        while self._waiting and (not taken or len(self._waiting[0].prompt) <= left):
            taken.append(self._waiting.popleft())
            left -= len(taken[-1].prompt)
        batches = cut(sorted(taken, key=lambda request: len(request.prompt)), self.batch_tokens)
        places = {request.request_id: place for place, request in enumerate(taken)}
        return sorted(batches, key=lambda batch: min(places[r.request_id] for r in batch))


def cut(requests: Sequence[PoolingRequest], batch_tokens: int) -> list[list[PoolingRequest]]:
    """Cut a list into batches of at most so many tokens; one that has more is alone."""
    batches: list[list[PoolingRequest]] = []
    left = 0
    for request in requests:
        size = len(request.prompt)
        if not batches or size > left:
            batches.append([])
            left = batch_tokens
        batches[-1].append(request)
        left -= size
    return batches


def choose_sizes(options: EncoderOptions, info: ReaderInfo, pooling: Pooling) -> EncoderSizes:
    """Return the user's sizes; else what graph and pooling read, and a batch that keeps CPUs busy.

    Raises EngineError for texts longer than the graph's positions.
    """
    info.check_length(options.max_model_len)
    length = options.max_model_len or min(info.capacity, pooling.max_tokens or info.capacity)
    tokens = options.batch_tokens or max(MIN_BATCH_TOKENS, TOKENS_PER_CPU * num_cpus())
    return EncoderSizes(length, tokens)


def _row(request: PoolingRequest) -> Row:
    types = None if request.token_types is None else np.array(request.token_types, np.int64)
    return Row(np.array(request.prompt, np.int64), types)
