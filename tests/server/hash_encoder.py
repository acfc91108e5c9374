"""A small encoder of tests: each value is a hash of the request's tokens and segments."""

import hashlib
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import EngineStats, PooledOutput, PoolingRequest
from sgate_serve.errors import RequestError


def hash_values(request: PoolingRequest, width: int) -> NDArray[np.float32]:
    """Values from -3 to 3, the same for the same request."""
    text = repr((request.prompt, request.token_types))
    digest = hashlib.sha256(text.encode()).digest()
    values = np.frombuffer(digest, np.uint8)[:width].astype(np.float32)
    return (values - np.float32(128)) / np.float32(42)


class HashEncoder:
    """Keeps the promises of `engines.base.PoolingEngine`, up to `batch` requests a step."""

    name = "hash"

    def __init__(
        self, vocab_size: int, width: int = 4, *, max_model_len: int = 64, step_seconds: float = 0.0
    ) -> None:
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.step_seconds = step_seconds
        self.fails = threading.Event()
        self.asked: list[PoolingRequest] = []
        self._width = width
        self._batch = 4
        self._waiting: list[PoolingRequest] = []

    def add(self, request: PoolingRequest) -> None:
        if len(request.prompt) > self.max_model_len:
            raise RequestError(f"{len(request.prompt)} tokens exceed {self.max_model_len}")
        self.asked.append(request)
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        self._waiting = [item for item in self._waiting if item.request_id != request_id]

    def step(self) -> Sequence[PooledOutput]:
        if self.fails.is_set():
            raise RuntimeError("the hash encoder was told to fail")
        time.sleep(self.step_seconds)
        batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        # Backwards, because nothing promises an order within a step.
        return [PooledOutput(r.request_id, hash_values(r, self._width)) for r in reversed(batch)]

    def has_work(self) -> bool:
        return bool(self._waiting)

    def stats(self) -> EngineStats:
        return EngineStats(0, len(self._waiting), 0.0)
