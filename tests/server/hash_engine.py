"""A small engine of tests: the next token is a hash of the tokens so far, or what a script says.

It keeps the promises of `engines.base.Engine`: slots, a queue, one token of every running request
per step, stop tokens never shown. Its tokens depend on nothing but the request.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sgate_serve.engines.contract import (
    EngineStats,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from sgate_serve.errors import RequestError


@dataclass
class Running:
    request: Request
    tokens: list[int] = field(default_factory=list)
    admitted: float = field(default_factory=time.perf_counter)


class HashEngine:
    """`script` maps a prompt to the tokens that follow it; a script that ends repeats its last."""

    name = "hash"

    def __init__(
        self,
        vocab_size: int,
        *,
        script: Sequence[int] = (),
        max_model_len: int = 512,
        num_slots: int = 4,
        step_seconds: float = 0.0,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.step_seconds = step_seconds
        self.fails = threading.Event()
        self.num_steps = 0
        self._scored: set[str] = set()
        self.asked: list[SamplingParams] = []
        self._script = tuple(script)
        self._num_slots = num_slots
        self._running: dict[str, Running] = {}
        self._waiting: list[Request] = []

    def add(self, request: Request) -> None:
        total = len(request.prompt) + request.sampling.max_tokens
        if total > self.max_model_len:
            raise RequestError(f"{total} tokens exceed the {self.max_model_len} that fit")
        self.asked.append(request.sampling)
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._waiting = [item for item in self._waiting if item.request_id != request_id]

    def step(self) -> Sequence[TokenEvent]:
        if self.fails.is_set():
            raise RuntimeError("the hash engine was told to fail")
        time.sleep(self.step_seconds)
        self.num_steps += 1
        while self._waiting and len(self._running) < self._num_slots:
            request = self._waiting.pop(0)
            self._running[request.request_id] = Running(request)
        running = tuple(self._running.values())
        return [replace(self._advance(own), admitted=own.admitted) for own in running]

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def stats(self) -> EngineStats:
        usage = len(self._running) / self._num_slots
        return EngineStats(len(self._running), len(self._waiting), usage)

    def _advance(self, running: Running) -> TokenEvent:
        event = self._event(running)
        num_top = running.request.sampling.prompt_logprobs
        if num_top is None or running.request.request_id in self._scored:
            return event
        self._scored.add(running.request.request_id)
        first, *others = running.request.prompt
        scores = [TokenLogprobs(first, None), *(self._scores(token, num_top) for token in others)]
        return replace(event, prompt_logprobs=tuple(scores))

    def _scores(self, token: int, num_top: int) -> TokenLogprobs:
        """Say that a token is the likeliest, followed by its successors."""
        top = [((token + rank) % self.vocab_size, -0.5 - rank) for rank in range(num_top)]
        return TokenLogprobs(token, -0.5, tuple(top), rank=1)

    def _event(self, running: Running) -> TokenEvent:
        request, tokens = running.request, running.tokens
        if request.sampling.max_tokens == 0:
            del self._running[request.request_id]
            return TokenEvent(request.request_id, None, "length")
        token = self._next(running)
        is_late = len(tokens) >= request.sampling.min_tokens
        num_top = request.sampling.logprobs
        scores = None if num_top is None else self._scores(token, num_top)
        if scores is not None and request.sampling.logprob_token_ids:
            ids = sorted({token, *request.sampling.logprob_token_ids})
            scores = replace(scores, top=tuple((own, -0.5) for own in ids))
        if is_late and token in request.sampling.stop_token_ids:
            del self._running[request.request_id]
            return TokenEvent(request.request_id, None, "stop", scores, stop_token=token)
        tokens.append(token)
        if len(tokens) == request.sampling.max_tokens:
            del self._running[request.request_id]
            return TokenEvent(request.request_id, token, "length", scores)
        return TokenEvent(request.request_id, token, None, scores)

    def _next(self, running: Running) -> int:
        if self._script:
            return self._script[min(len(running.tokens), len(self._script) - 1)]
        seed = running.request.sampling.seed if running.request.sampling.temperature else None
        text = repr((running.request.prompt, tuple(running.tokens), seed))
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:4], "little") % self.vocab_size
