"""Slot-based continuous batching, generic over the model runner behind it.

Each step admits waiting requests to free slots in order of arrival, feeds one chunk of one
prompt, and decodes every row that already has a token in one call. A long prompt therefore delays
running streams by one chunk at most.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import (
    EngineStats,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from sgate_serve.engines.logprobs import score_tokens
from sgate_serve.engines.sampling import Logits, Sampler, choose_tokens
from sgate_serve.errors import EngineError, RequestError
from sgate_serve.options import option

# The logits of every position of a chunk are held at once: 128 over 150 000 tokens are 77 MB.
SCORED_CHUNK = 128


@dataclass(frozen=True)
class SlotOptions:
    """Sizes of a slot engine; None means chosen from the machine and the model, and logged."""

    slots: int | None = option(None, "requests that run at the same time")
    max_model_len: int | None = option(None, "longest prompt and completion together, in tokens")
    threads: int | None = option(None, "CPU threads of the engine")
    prefill_chunk: int | None = option(None, "prompt tokens fed in one step")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise EngineError(f"engine option {name} must be at least 1, found {value}")


class Runner(Protocol):
    """A model with a KV cache of `num_slots` rows; each slot holds the tokens of one request."""

    num_slots: int
    max_model_len: int
    vocab_size: int

    def prefill(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [vocab] after the last."""

    def prefill_scored(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to what the slot holds; return the logits [len(tokens), vocab] of all."""

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Logits:
        """Append one token to each slot; return [len(slots), vocab] in that order."""

    def logits(self, tokens: NDArray[np.int64]) -> Logits:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle runner."""

    def release(self, slot: int) -> None:
        """Forget what the slot holds."""


@dataclass
class _Sequence:
    """A request in a slot: how much of its prompt is fed and what it generated last."""

    request: Request
    slot: int
    sampler: Sampler
    num_fed: int = 0
    num_generated: int = 0
    last_token: int = -1
    prompt_scores: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_cached(self) -> int:
        # The newest token enters the cache only when the next one is computed.
        return self.num_fed + max(0, self.num_generated - 1)


class SlotEngine:
    """An `Engine` (see engines/base.py) over any `Runner`; a subclass adds how to load one."""

    def __init__(self, name: str, runner: Runner, prefill_chunk: int) -> None:
        self.name, self.runner, self.prefill_chunk = name, runner, prefill_chunk
        self.max_model_len, self.vocab_size = runner.max_model_len, runner.vocab_size
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _Sequence] = {}

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_request(request, self.max_model_len, self.vocab_size)
        ids = {waiting.request_id for waiting in self._waiting} | self._running.keys()
        assert request.request_id not in ids, f"request id {request.request_id} is in use"
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its slot at once; no event follows."""
        if request_id in self._running:
            self._release(self._running[request_id])
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)

    def step(self) -> list[TokenEvent]:
        self._admit()
        # Chosen before the prefill: a request gets at most one token in a step.
        decoding = [sequence for sequence in self._running.values() if sequence.num_generated]
        return self._prefill_chunk() + self._decode(decoding)

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def stats(self) -> EngineStats:
        cached = sum(sequence.num_cached for sequence in self._running.values())
        capacity = self.runner.num_slots * self.max_model_len
        return EngineStats(len(self._running), len(self._waiting), cached / capacity)

    def logits(self, tokens: NDArray[np.int64]) -> Logits:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle engine."""
        return self.runner.logits(tokens)

    def close(self) -> None:
        """Drop the runner, whose model and KV cache go with it."""
        del self.runner

    def _admit(self) -> None:
        # Lowest slot first: the rows of a decode call then lie close together.
        taken = {sequence.slot for sequence in self._running.values()}
        free = (slot for slot in range(self.runner.num_slots) if slot not in taken)
        for slot in free:
            if not self._waiting:
                return
            request = self._waiting.popleft()
            sampler = Sampler.start(request.sampling, request.prompt)
            self._running[request.request_id] = _Sequence(request, slot, sampler)

    def _prefill_chunk(self) -> list[TokenEvent]:
        """Feed one chunk to the oldest request whose prompt is not all in the cache."""
        for sequence in self._running.values():
            prompt, start = sequence.request.prompt, sequence.num_fed
            if start == len(prompt):
                continue
            logits = self._feed(sequence)
            if sequence.num_fed < len(prompt):
                return []
            if sequence.request.sampling.max_tokens == 0:
                self._release(sequence)
                return [
                    _with_prompt(TokenEvent(sequence.request.request_id, None, "length"), sequence)
                ]
            events = self._emit([sequence], logits[None])
            return [_with_prompt(event, sequence) for event in events]
        return []

    def _feed(self, sequence: _Sequence) -> Logits:
        """Feed the next chunk and score it if asked; return the logits after its last token."""
        prompt, start = sequence.request.prompt, sequence.num_fed
        num_top = sequence.request.sampling.prompt_logprobs
        if num_top is None:
            sequence.num_fed = min(start + self.prefill_chunk, len(prompt))
            return self.runner.prefill(sequence.slot, prompt[start : sequence.num_fed])
        sequence.num_fed = min(start + min(self.prefill_chunk, SCORED_CHUNK), len(prompt))
        logits = self.runner.prefill_scored(sequence.slot, prompt[start : sequence.num_fed])
        if start == 0:
            sequence.prompt_scores.append(TokenLogprobs(prompt[0], None))
        # Each position predicts the token after it; the last one that of the completion.
        targets = prompt[start + 1 : sequence.num_fed + 1]
        nums = [num_top] * len(targets)
        sequence.prompt_scores += score_tokens(logits[: len(targets)], targets, nums)
        return np.asarray(logits[-1])

    def _decode(self, sequences: list[_Sequence]) -> list[TokenEvent]:
        if not sequences:
            return []
        slots = [sequence.slot for sequence in sequences]
        logits = self.runner.decode(slots, [sequence.last_token for sequence in sequences])
        return self._emit(sequences, logits)

    def _emit(self, sequences: list[_Sequence], logits: Logits) -> list[TokenEvent]:
        tokens = choose_tokens(logits, [sequence.sampler for sequence in sequences])
        events = [self._advance(*pair) for pair in zip(sequences, tokens, strict=True)]
        return _scored(events, sequences, logits)

    def _advance(self, sequence: _Sequence, token: int) -> TokenEvent:
        """Record a new token; end the request at a stop token or a limit."""
        request, sampling = sequence.request, sequence.request.sampling
        if token in sampling.stop_token_ids:
            self._release(sequence)
            return TokenEvent(request.request_id, None, "stop")
        sequence.num_generated += 1
        sequence.last_token = token
        limit = min(sampling.max_tokens, self.max_model_len - len(request.prompt))
        if sequence.num_generated < limit:
            return TokenEvent(request.request_id, token)
        self._release(sequence)
        return TokenEvent(request.request_id, token, "length")

    def _release(self, sequence: _Sequence) -> None:
        self.runner.release(sequence.slot)
        del self._running[sequence.request.request_id]


def _scored(
    events: list[TokenEvent], sequences: Sequence[_Sequence], logits: Logits
) -> list[TokenEvent]:
    """Return the events of `logits` [rows, vocab], with scores where they were asked for."""
    asked: list[tuple[int, int, int]] = []
    for row, (event, sequence) in enumerate(zip(events, sequences, strict=True)):
        num_top = sequence.request.sampling.logprobs
        if num_top is not None and event.token is not None:
            asked.append((row, event.token, num_top))
    if asked:
        rows, tokens, nums = zip(*asked, strict=True)
        for row, scores in zip(rows, score_tokens(logits[list(rows)], tokens, nums), strict=True):
            events[row] = replace(events[row], logprobs=scores)
    return events


def _with_prompt(event: TokenEvent, sequence: _Sequence) -> TokenEvent:
    return replace(event, prompt_logprobs=tuple(sequence.prompt_scores))


def check_request(request: Request, max_model_len: int, vocab_size: int) -> None:
    """Raise RequestError naming the field that makes a request impossible to run."""
    prompt = request.prompt
    if not prompt:
        raise RequestError("the prompt has no tokens; give at least one", param="prompt")
    for index, token in enumerate(prompt):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"prompt token {token} at index {index} is outside the vocabulary of "
                f"{vocab_size} tokens",
                param="prompt",
            )
    if len(prompt) + min(1, request.sampling.max_tokens) > max_model_len:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; this server takes at most {max_model_len - 1} "
            f"(model length {max_model_len}, one token of it for the answer)",
            param="prompt",
        )
    check_sampling(request.sampling, vocab_size)


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError naming the parameter that no token can be chosen by; NaN is never fine."""
    tokens_left = vocab_size - len(sampling.stop_token_ids)
    checks: tuple[tuple[str, bool, str], ...] = (
        ("max_tokens", sampling.max_tokens >= 0, "0 (only read the prompt) or more"),
        ("temperature", sampling.temperature >= 0, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("seed", sampling.seed is None or sampling.seed >= 0, "0 or more"),
        ("top_k", sampling.top_k >= 0, "0 (all tokens) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "from 0 to max_tokens"),
        ("min_tokens", not sampling.min_tokens or tokens_left > 0, "0 if every token stops"),
        ("logprobs", sampling.logprobs is None or sampling.logprobs >= 0, "0 or more"),
        ("prompt_logprobs", (sampling.prompt_logprobs or 0) >= 0, "0 or more"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "above 0 and finite"),
        ("presence_penalty", math.isfinite(sampling.presence_penalty), "finite"),
        ("frequency_penalty", math.isfinite(sampling.frequency_penalty), "finite"),
    )
    for name, holds, expected in checks:
        if not holds:
            found = getattr(sampling, name)
            raise RequestError(f"{name} must be {expected}, found {found}", param=name)
    for token, bias in sampling.logit_bias:
        if not (0 <= token < vocab_size and math.isfinite(bias)):
            raise RequestError(
                f"logit_bias adds {bias} to token {token}; it must be finite, and the token one "
                f"of {vocab_size}",
                param="logit_bias",
            )
