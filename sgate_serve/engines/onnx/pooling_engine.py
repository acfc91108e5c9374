"""The embedded engine for pooling models: classifiers and embedding models.

Each step runs one batch. The oldest waiting requests, up to a few batches' worth, are sorted by
length and cut into batches: the texts of one batch need little padding, and no request waits for
later requests beyond its own few batches.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from sgate_serve.engines.contract import EngineStats, PooledOutput, PoolingRequest
from sgate_serve.engines.engine_options import PoolingOptions
from sgate_serve.engines.model_protocols import Floats, Tokens
from sgate_serve.engines.onnx.engine import residuals
from sgate_serve.engines.onnx.pooling_runner import OnnxPoolingRunner, PoolingGraphInfo, TokenRow
from sgate_serve.engines.request_checks import check_pooling_request
from sgate_serve.environment import num_cpus
from sgate_serve.onnx_format import names
from sgate_serve.text.pooling import Pooling

logger = logging.getLogger(__name__)

# A CPU's matrix products gain little beyond this many rows, and later requests wait for a batch.
TOKENS_PER_CPU, MIN_BATCH_TOKENS = 256, 512
# The number of batches whose requests are sorted together.
SORTED_BATCHES = 4


@dataclass(frozen=True)
class PoolingSizes:
    """The longest text, and the tokens of all texts in a batch (a single text may be longer)."""

    max_model_len: int
    batch_tokens: int


class OnnxPoolingEngine:
    """A `LoadedPoolingEngine` (engines/model_protocols.py) over an `OnnxPoolingRunner`."""

    name = "onnx"
    version = str(ort.__version__)

    def __init__(self, runner: OnnxPoolingRunner, sizes: PoolingSizes, pooling: Pooling) -> None:
        self.runner, self.pooling, self.batch_tokens = runner, pooling, sizes.batch_tokens
        self.max_model_len, self.vocab_size = sizes.max_model_len, runner.info.vocab_size
        self.precision = runner.info.held
        self._waiting: deque[PoolingRequest] = deque()
        self._batches: deque[list[PoolingRequest]] = deque()

    @classmethod
    def load(
        cls, folder: Path, options: PoolingOptions | None = None, pooling: Pooling | None = None
    ) -> "OnnxPoolingEngine":
        """Load `model.onnx` from `folder`; raise EngineError if it is missing or does not fit."""
        options, pooling = options or PoolingOptions(), pooling or Pooling()
        threads = options.threads or num_cpus()
        runner = OnnxPoolingRunner.load(folder, threads)
        sizes = choose_sizes(options, runner.info, pooling)
        logger.info(
            "onnx engine: weights %s, max_model_len=%d batch_tokens=%d threads=%d",
            runner.info.weights,
            sizes.max_model_len,
            sizes.batch_tokens,
            threads,
        )
        return cls(runner, sizes, pooling)

    def add(self, request: PoolingRequest) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_pooling_request(
            request, self.max_model_len, self.vocab_size, self.runner.info.num_types
        )
        self.runner.info.check_padding(request.prompt)
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Drop a waiting request; unknown ids are ignored."""
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        kept = ([r for r in batch if r.request_id != request_id] for batch in self._batches)
        self._batches = deque(batch for batch in kept if batch)

    def step(self) -> list[PooledOutput]:
        """Run one batch, in the order that the module's docstring describes."""
        if not self._batches:
            self._batches.extend(self._next_batches())
        if not self._batches:
            return []
        batch = self._batches.popleft()
        values = self.runner.forward([_row(request) for request in batch])
        return [
            PooledOutput(request.request_id, self._pooled(own))
            for request, own in zip(batch, values, strict=True)
        ]

    def has_work(self) -> bool:
        return bool(self._waiting or self._batches)

    def stats(self) -> EngineStats:
        return EngineStats(0, len(self._waiting) + sum(map(len, self._batches)), 0.0)

    def encode(
        self, prompts: Sequence[Tokens], types: Sequence[Tokens | None] | None = None
    ) -> list[Floats]:
        """Return logits [labels] or last hidden states [s, hidden], bypassing the queue."""
        for prompt in prompts:
            self.runner.info.check_padding(prompt)
        types = types or [None] * len(prompts)
        return self.runner.forward([TokenRow(*pair) for pair in zip(prompts, types, strict=True)])

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        """Return the outputs for one prompt: logits [1, labels] or states [s, hidden]."""
        return np.atleast_2d(self.encode([tokens], [types])[0])

    def residuals(self, tokens: Tokens, types: Tokens | None = None) -> list[Floats]:
        """Return the residual stream after each layer, from a second copy of the graph."""
        feeds = {names.POSITION_IDS: self.runner.info.positions(tokens)}
        if types is not None:
            feeds[names.TOKEN_TYPE_IDS] = types
        return residuals(self.runner.folder, tokens, feeds)

    def close(self) -> None:
        """Drop the runner, and with it the model."""
        del self.runner

    def _pooled(self, values: Floats) -> Floats:
        is_states = self.runner.info.kind == names.EMBED
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
    """Cut a list into batches of at most `batch_tokens`; a longer request gets its own batch."""
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


def choose_sizes(options: PoolingOptions, info: PoolingGraphInfo, pooling: Pooling) -> PoolingSizes:
    """Return the user's sizes; the defaults are the longest text and a batch that fills the CPUs.

    Raises EngineError for texts longer than the graph's positions.
    """
    info.check_length(options.max_model_len)
    length = options.max_model_len or min(info.capacity, pooling.max_tokens or info.capacity)
    tokens = options.batch_tokens or max(MIN_BATCH_TOKENS, TOKENS_PER_CPU * num_cpus())
    return PoolingSizes(length, tokens)


def _row(request: PoolingRequest) -> TokenRow:
    types = None if request.token_types is None else np.array(request.token_types, np.int64)
    return TokenRow(np.array(request.prompt, np.int64), types)
