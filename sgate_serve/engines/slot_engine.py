"""Slot-based continuous batching over any model runner.

Each step admits waiting requests to free slots in order of arrival, but for those whose beginning
another one is reading. It makes one forward call: every decoding sequence gets its last token, and
sequences whose prompt is not fully processed share one chunk. A long prompt therefore delays
running streams by one chunk at most. A request is admitted if its tokens fit into the KV cache
together with those already running. If the cache overflows as completions grow, the newest sequence
is preempted: it frees its slot, returns to the front of the queue and is processed again later.
What an ended sequence leaves in its slot stays there while nobody needs the room, and a sequence
that begins alike does not process it again.
"""

from collections import deque
from dataclasses import replace
from itertools import islice
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import (
    EngineStats,
    FinishReason,
    Request,
    TokenEvent,
    TokenLogprobs,
)
from sgate_serve.engines.drafter import Drafter, FollowedRunner
from sgate_serve.engines.grammar_mask import within_grammars
from sgate_serve.engines.model_protocols import Floats, Tokens
from sgate_serve.engines.prompt_lookup import with_looked_up
from sgate_serve.engines.request_checks import check_request
from sgate_serve.engines.runner import Runner, all_logits
from sgate_serve.engines.sampling import Logits, choose_tokens
from sgate_serve.engines.scheduler import ScheduledChunk, schedule
from sgate_serve.engines.sequence import Sequence
from sgate_serve.engines.slots import Slots
from sgate_serve.engines.token_logprobs import token_logprobs
from sgate_serve.errors import RequestError

# How many waiting requests, for each slot, may overtake one that waits for a prefix.
LOOKED_AT = 4


class SlotEngine:
    """A `LoadedEngine` (engines/model_protocols.py) over any `Runner`.

    A subclass names the engine and its version, and adds how to load one.
    """

    name: str
    version: str

    def __init__(self, runner: Runner, prefill_chunk: int) -> None:
        self.runner, self.prefill_chunk, self.precision = runner, prefill_chunk, runner.precision
        self.max_model_len, self.vocab_size = runner.max_model_len, runner.vocab_size
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}
        self._slots = Slots(runner, prefill_chunk)
        self.drafter: Drafter | None = None
        self._num_drafts = self._num_drafted = self._num_accepted = self._num_preemptions = 0

    def draft_with(self, drafter: Drafter) -> None:
        """Check drafts of a second model from now on; needs an engine without requests so far."""
        self.drafter, self.runner = drafter, FollowedRunner(self.runner, drafter)
        self._slots = Slots(self.runner, self.prefill_chunk)

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_request(request, self.max_model_len, self.vocab_size)
        if request.sampling.drafted_tokens and not self.runner.shares_prefixes:
            raise RequestError(
                "`prompt_lookup_num_tokens` needs an engine on a CPU and a model without recurrent "
                "layers; leave it out",
                param="prompt_lookup_num_tokens",
            )
        ids = {waiting.request.request_id for waiting in self._waiting} | self._running.keys()
        assert request.request_id not in ids, f"request id {request.request_id} is in use"
        self._waiting.append(Sequence.of(request, self.max_model_len))

    def abort(self, request_id: str) -> None:
        """Drop a request and free its slot at once; no event follows."""
        if request_id in self._running:
            self._release(self._running[request_id])
        self._waiting = deque(s for s in self._waiting if s.request.request_id != request_id)

    def step(self) -> list[TokenEvent]:
        """Advance by one forward call, as the module's docstring describes."""
        self._admit()
        scheduled = self._schedule()
        if not scheduled:
            return []
        logits = self.runner.forward([chunk.token_chunk for chunk in scheduled])
        return self._receive(scheduled, logits)

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def stats(self) -> EngineStats:
        cached = sum(sequence.num_cached for sequence in self._running.values())
        usage = cached / self.runner.cache_tokens
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_cache_usage=usage,
            prefix_queries=self._slots.queries,
            prefix_hits=self._slots.hits,
            drafts=self._num_drafts,
            draft_tokens=self._num_drafted,
            accepted_tokens=self._num_accepted,
            preemptions=self._num_preemptions,
        )

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle engine."""
        assert types is None, "a causal language model has no token types"
        self.forget_prefixes()
        return all_logits(self.runner, tokens, self.prefill_chunk)

    def residuals(self, tokens: Tokens, types: Tokens | None = None) -> list[Floats] | None:
        """Return None, since a runner does not expose its residual stream."""
        return None

    def forget_prefixes(self) -> None:
        """Empty all idle slots."""
        self._slots.make_room(self.runner.cache_tokens)

    def close(self) -> None:
        """Drop the runners, and with them the models and their KV caches."""
        del self.runner, self._slots, self.drafter

    def _admit(self) -> None:
        running = self._running.values()
        for sequence in [*islice(self._waiting, LOOKED_AT * self.runner.num_slots)]:
            held = sum(len(other.tokens) for other in running) + len(sequence.tokens)
            is_full = len(running) == self.runner.num_slots
            if is_full or held > self.runner.cache_tokens:
                return
            source, length = self._slots.prefix_of(sequence, running)
            if not self._slots.is_worth_waiting(sequence, length, running):
                self._waiting.remove(sequence)
                if sequence.admitted is None:
                    sequence.admitted = perf_counter()
                self._slots.place(sequence, source, length, running)
                self._running[sequence.request.request_id] = sequence
                self._slots.make_room(held)

    def _preempt(self) -> None:
        """Free the slot of the newest sequence and put it at the front of the queue."""
        _, sequence = self._running.popitem()
        self._num_preemptions += 1
        self.runner.release(sequence.slot)
        sequence.num_cached = 0
        if not sequence.num_generated:
            sequence.prompt_logprobs.clear()
        self._waiting.appendleft(sequence)

    def _schedule(self) -> list[ScheduledChunk]:
        """Return the chunks of this step; sequences are preempted until these fit the cache."""
        while True:
            plain = schedule([*self._running.values()], self.prefill_chunk)
            held = sum(sequence.num_cached for sequence in self._running.values())
            free = self.runner.cache_tokens - held - sum(chunk.num_tokens for chunk in plain)
            if free >= 0:
                break
            self._preempt()
        # No sequence is preempted for a draft.
        scheduled = self._with_drafts(plain, free)
        self._slots.make_room(held + sum(chunk.num_fed for chunk in scheduled))
        return scheduled

    def _with_drafts(self, plain: list[ScheduledChunk], free: int) -> list[ScheduledChunk]:
        """Add drafts: looked up where a request asks for it, else of the draft model."""
        chunks = [with_looked_up(chunk, self.prefill_chunk) for chunk in plain]
        free -= sum(len(chunk.draft) for chunk in chunks)
        if free < 0:
            return plain
        return chunks if self.drafter is None else self.drafter.with_drafts(chunks, free)

    def _receive(self, scheduled: list[ScheduledChunk], logits: Logits) -> list[TokenEvent]:
        """Store prompt log-probabilities, choose the tokens that are due, end finished requests."""
        ends = np.cumsum([chunk.num_logits for chunk in scheduled], dtype=np.int64)
        for chunk, end in zip(scheduled, ends, strict=True):
            if chunk.sequence.needs_prompt_logprobs:
                chunk.keep_prompt_logprobs(logits[end - chunk.num_logits : end])
        sampled = [index for index, chunk in enumerate(scheduled) if chunk.is_sampled]
        ended = [chunk.sequence for chunk in scheduled if chunk.is_last and not chunk.is_sampled]
        for chunk in scheduled:
            chunk.sequence.num_cached += chunk.num_tokens
        drafts = [scheduled[index].draft for index in sampled]
        rows = ends[sampled] - 1 - np.array([len(draft) for draft in drafts], np.int64)
        events = self._sample([scheduled[index].sequence for index in sampled], logits, rows)
        if any(drafts):
            events += self._verify([scheduled[index] for index in sampled], logits, rows)
        for sequence in ended:
            events.append(self._end(sequence, "length", tuple(sequence.prompt_logprobs)))
        return events

    def _verify(
        self, chunks: list[ScheduledChunk], logits: Logits, rows: NDArray[np.int64]
    ) -> list[TokenEvent]:
        """Choose on along each draft while it is right; forget the rest of it.

        `rows` are those of the logits before the drafts.
        """
        events: list[TokenEvent] = []
        self._num_drafts += sum(bool(chunk.draft) for chunk in chunks)
        self._num_drafted += sum(len(chunk.draft) for chunk in chunks)
        going, depth = [*zip(chunks, rows.tolist(), strict=True)], 0
        while going := [pair for pair in going if self._is_right(pair[0], depth)]:
            depth += 1
            sequences = [chunk.sequence for chunk, _ in going]
            for sequence in sequences:
                sequence.num_cached += 1
            self._num_accepted += len(going)
            events += self._sample(sequences, logits, np.array([row for _, row in going]) + depth)
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.draft and sequence.request.request_id in self._running:
                self.runner.share(sequence.slot, sequence.slot, sequence.num_cached)
        return events

    def _is_right(self, chunk: ScheduledChunk, depth: int) -> bool:
        """Say whether a sequence goes on, and its last token is the one drafted at `depth`."""
        is_running = chunk.sequence.request.request_id in self._running
        return is_running and chunk.sequence.tokens[-1:] == [*chunk.draft[depth : depth + 1]]

    def _sample(
        self, sequences: list[Sequence], logits: Logits, rows: NDArray[np.int64]
    ) -> list[TokenEvent]:
        """Choose the next token of each sequence from its row of `logits`."""
        if not sequences:
            return []
        own = logits if len(rows) == len(logits) else logits[rows]
        samplers = [sequence.sampler for sequence in sequences]
        own = within_grammars(own, samplers)
        tokens = choose_tokens(own, samplers)
        events = [self._advance(*pair) for pair in zip(sequences, tokens, strict=True)]
        return _with_logprobs(events, sequences, own)

    def _advance(self, sequence: Sequence, token: int) -> TokenEvent:
        """Record a new token; end the request at a stop token, a limit or its grammar's end."""
        request, sampling = sequence.request, sequence.request.sampling
        prompt_logprobs = () if sequence.num_generated else tuple(sequence.prompt_logprobs)
        if token in sampling.stop_token_ids:
            return replace(self._end(sequence, "stop", prompt_logprobs), stop_token=token)
        try:
            reason = sequence.append(token)
        except RequestError as error:
            return replace(self._end(sequence, "abort", prompt_logprobs), error=error)
        if reason is not None:
            self._release(sequence)
        return TokenEvent(
            request.request_id,
            token,
            reason,
            prompt_logprobs=prompt_logprobs,
            num_cached=sequence.num_shared,
            admitted=sequence.admitted,
        )

    def _end(
        self, sequence: Sequence, reason: FinishReason, prompt_logprobs: tuple[TokenLogprobs, ...]
    ) -> TokenEvent:
        """End a request without a new token."""
        self._release(sequence)
        return TokenEvent(
            sequence.request.request_id,
            None,
            reason,
            prompt_logprobs=prompt_logprobs,
            num_cached=sequence.num_shared,
            admitted=sequence.admitted,
        )

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.request.request_id]
        self._slots.leave(sequence)


def _with_logprobs(
    events: list[TokenEvent], sequences: list[Sequence], logits: Logits
) -> list[TokenEvent]:
    """Add log-probabilities to the events whose requests ask for them, from [rows, vocab]."""
    asked: list[tuple[int, int, int | tuple[int, ...]]] = []
    for row, (event, sequence) in enumerate(zip(events, sequences, strict=True)):
        sampling = sequence.request.sampling
        token = event.stop_token if event.token is None else event.token
        if sampling.logprobs is not None and token is not None:
            asked.append((row, token, sampling.logprob_token_ids or sampling.logprobs))
    if asked:
        rows, tokens, shown = zip(*asked, strict=True)
        found = token_logprobs(logits[list(rows)], tokens, shown)
        for row, logprobs in zip(rows, found, strict=True):
            events[row] = replace(events[row], logprobs=logprobs)
    return events
