"""Slot-based continuous batching, generic over the model runner behind it.

Each step admits waiting requests to free slots in order of arrival and makes one call: every row
that generates gets its last token, and rows whose prompt is not all read share one chunk. A long
prompt therefore delays running streams by one chunk at most. A request is admitted where its
tokens fit the KV cache beside those that run; when their answers outgrow it, the newest one gives
its memory back, waits, and is read again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import EngineStats, FinishReason, Request, TokenEvent, TokenLogprobs
from sgate_serve.engines.logprobs import score_tokens
from sgate_serve.engines.requests import check_request
from sgate_serve.engines.runner import Runner, all_logits
from sgate_serve.engines.sampling import Logits, choose_tokens
from sgate_serve.engines.turns import Progress, Turn, turns_of


class SlotEngine:
    """An `Engine` (see engines/base.py) over any `Runner`; a subclass adds how to load one."""

    def __init__(self, name: str, runner: Runner, prefill_chunk: int) -> None:
        self.name, self.runner, self.prefill_chunk = name, runner, prefill_chunk
        self.max_model_len, self.vocab_size = runner.max_model_len, runner.vocab_size
        self._waiting: deque[Progress] = deque()
        self._running: dict[str, Progress] = {}

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_request(request, self.max_model_len, self.vocab_size)
        ids = {waiting.request.request_id for waiting in self._waiting} | self._running.keys()
        assert request.request_id not in ids, f"request id {request.request_id} is in use"
        self._waiting.append(Progress.of(request))

    def abort(self, request_id: str) -> None:
        """Drop a request and free its slot at once; no event follows."""
        if request_id in self._running:
            self._release(self._running[request_id])
        self._waiting = deque(s for s in self._waiting if s.request.request_id != request_id)

    def step(self) -> list[TokenEvent]:
        """Advance by one call; see the top of this file for what it feeds."""
        self._admit()
        turns = self._turns()
        if not turns:
            return []
        return self._receive(turns, self.runner.forward([turn.feed for turn in turns]))

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def stats(self) -> EngineStats:
        cached = sum(progress.num_cached for progress in self._running.values())
        usage = cached / self.runner.cache_tokens
        return EngineStats(len(self._running), len(self._waiting), usage)

    def logits(self, tokens: NDArray[np.int64]) -> Logits:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle engine."""
        return all_logits(self.runner, tokens)

    def close(self) -> None:
        """Drop the runner, whose model and KV cache go with it."""
        del self.runner

    def _admit(self) -> None:
        # Lowest slot first: the rows of a call then lie close together.
        taken = {progress.slot for progress in self._running.values()}
        free = (slot for slot in range(self.runner.num_slots) if slot not in taken)
        held = sum(len(progress.tokens) for progress in self._running.values())
        for slot in free:
            if not self._waiting:
                return
            held += len(self._waiting[0].tokens)
            if held > self.runner.cache_tokens:
                return
            progress = self._waiting.popleft()
            progress.slot = slot
            self._running[progress.request.request_id] = progress

    def _preempt(self) -> None:
        """Take the slot of the newest request, which waits in front and is read again later."""
        progress = next(reversed(self._running.values()))
        self._release(progress)
        progress.num_cached = 0
        if not progress.num_generated:
            progress.prompt_scores.clear()
        self._waiting.appendleft(progress)

    def _turns(self) -> list[Turn]:
        """Return what is fed now; requests are preempted until it fits the cache."""
        while True:
            turns = turns_of([*self._running.values()], self.prefill_chunk)
            cached = sum(progress.num_cached for progress in self._running.values())
            if cached + sum(turn.count for turn in turns) <= self.runner.cache_tokens:
                return turns
            self._preempt()

    def _receive(self, turns: Sequence[Turn], logits: Logits) -> list[TokenEvent]:
        """Score the prompts that want it, choose a token where one is due, end what has ended."""
        ends = np.cumsum([turn.num_logits for turn in turns], dtype=np.int64)
        for turn, end in zip(turns, ends, strict=True):
            if turn.progress.is_scored:
                turn.score(logits[end - turn.num_logits : end])
        chosen = [index for index, turn in enumerate(turns) if turn.chooses]
        ended = [turn.progress for turn in turns if turn.is_last and not turn.chooses]
        for turn in turns:
            turn.progress.num_cached += turn.count
        events = self._choose([turns[index].progress for index in chosen], logits, ends[chosen] - 1)
        for progress in ended:
            events.append(self._end(progress, "length", tuple(progress.prompt_scores)))
        return events

    def _choose(
        self, chosen: Sequence[Progress], logits: Logits, rows: NDArray[np.int64]
    ) -> list[TokenEvent]:
        """Choose the next token of each request by its row of `logits`."""
        if not chosen:
            return []
        own = logits if len(rows) == len(logits) else logits[rows]
        tokens = choose_tokens(own, [progress.sampler for progress in chosen])
        events = [self._advance(*pair) for pair in zip(chosen, tokens, strict=True)]
        return _scored(events, chosen, own)

    def _advance(self, progress: Progress, token: int) -> TokenEvent:
        """Record a new token; end the request at a stop token or a limit."""
        request, sampling = progress.request, progress.request.sampling
        scores = () if progress.num_generated else tuple(progress.prompt_scores)
        if token in sampling.stop_token_ids:
            return self._end(progress, "stop", scores)
        progress.tokens.append(token)
        limit = min(sampling.max_tokens, self.max_model_len - len(request.prompt))
        event = TokenEvent(request.request_id, token, prompt_logprobs=scores)
        if progress.num_generated < limit:
            return event
        self._release(progress)
        return replace(event, finish_reason="length")

    def _end(
        self, progress: Progress, reason: FinishReason, scores: tuple[TokenLogprobs, ...]
    ) -> TokenEvent:
        """End a request without a token of its own."""
        self._release(progress)
        return TokenEvent(progress.request.request_id, None, reason, prompt_logprobs=scores)

    def _release(self, progress: Progress) -> None:
        self.runner.release(progress.slot)
        del self._running[progress.request.request_id]


def _scored(
    events: list[TokenEvent], chosen: Sequence[Progress], logits: Logits
) -> list[TokenEvent]:
    """Return the events of `logits` [rows, vocab], with scores where they were asked for."""
    asked: list[tuple[int, int, int]] = []
    for row, (event, progress) in enumerate(zip(events, chosen, strict=True)):
        num_top = progress.request.sampling.logprobs
        if num_top is not None and event.token is not None:
            asked.append((row, event.token, num_top))
    if asked:
        rows, tokens, nums = zip(*asked, strict=True)
        for row, scores in zip(rows, score_tokens(logits[list(rows)], tokens, nums), strict=True):
            events[row] = replace(events[row], logprobs=scores)
    return events
