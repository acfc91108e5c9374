"""Runs a job on the engine and turns its token events into text, choice by choice."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from sgate_serve.engines.contract import FinishReason, TokenEvent, TokenLogprobs
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.execution.jobs import Job
from sgate_serve.server.execution.stop_strings import StopStrings
from sgate_serve.server.prometheus import ServerMetrics
from sgate_serve.server.protocol.openai_logprobs import (
    Json,
    Position,
    prompt_logprobs,
    show_position,
)
from sgate_serve.server.shadow.shadow import Shadow
from sgate_serve.text.detokenization import Detokenizer
from sgate_serve.text.tokenization import TextCodec
from sgate_serve.text.tool_calls import CallParser, CallPiece

# Of a token; more are made into text outside the event loop.
FEW_LOGPROBS = 100


@dataclass(frozen=True)
class Delta:
    """The output that one event adds to one choice; text may lag behind tokens.

    A choice `has_called` once one of its deltas had `calls`. The first delta has the tokens of the
    prompt and, if they were asked for, their log-probabilities. The last one has the stop string or
    token that ended the text, except the model's end tokens.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    positions: tuple[Position, ...] = ()
    calls: tuple[CallPiece, ...] = ()
    has_called: bool = False
    prompt: tuple[int, ...] = ()
    prompt_logprobs: tuple[Json | None, ...] = ()
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Usage:
    """Prompt and generated tokens, over all choices; some of a prompt may have been cached."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class ChoiceDecoder:
    """Turns the token events of one choice into deltas; without a codec they have no text."""

    def __init__(self, index: int, job: Job, codec: TextCodec | None) -> None:
        request, display = job.requests[index], job.display
        skips = display.skips_special_tokens
        self.index = index
        self.finish_reason: FinishReason | None = None
        self._codec, self._display = codec, display
        self._text: Detokenizer | None = None
        if codec is not None:
            self._text = codec.detokenizer(request.prompt, skip_special_tokens=skips)
        self._stops = StopStrings(job.stop, is_shown=display.shows_stop)
        self._stop_strings, self._stop_ids = job.stop, job.stop_ids
        self._prompt = request.prompt
        self._echo = job.echo[index]
        self._length = len(self._echo)
        self._num_unwatched = request.sampling.min_tokens
        self._markers = {} if job.tools is None else job.tools.markers
        self._calls = None if job.tools is None else job.tools.parser()

    def push(self, event: TokenEvent) -> Delta:
        """Return the event's delta, which ends the choice if a stop string is complete."""
        shown, self._echo = self._echo, ""
        prompt, self._prompt = self._prompt, ()
        scores = self._prompt_scores(event.prompt_logprobs)
        positions = self._prompt_positions(event.prompt_logprobs)
        listed = event.token
        if listed is None and self._display.lists_stop:
            listed = event.stop_token
        if event.logprobs is not None and listed is not None:
            positions.append(self._position(event.logprobs, self._length))
        if event.token is not None and self._text is not None:
            text = self._decode(event.token)
            self._length += len(text)
            shown += self._watch(text)
        self.finish_reason = "stop" if self._stops.found else event.finish_reason
        if event.finish_reason is not None and self._text is not None and not self._stops.found:
            shown += self._finish(self._end(event.stop_token, self._text))
        tokens = () if listed is None else (listed,)
        delta = Delta(
            self.index,
            shown,
            tokens,
            self.finish_reason,
            tuple(positions),
            prompt=prompt,
            prompt_logprobs=scores,
            stop_reason=self._stops.found or self._stop_reason(event.stop_token),
        )
        return delta if self._calls is None else self._divided(delta, self._calls)

    def _divided(self, delta: Delta, parser: CallParser) -> Delta:
        """Return the delta with the calls in its text."""
        parsed = [parser.push(delta.text)]
        if delta.finish_reason is not None:
            parsed.append(parser.finish())
        return replace(
            delta,
            text="".join(part.content for part in parsed),
            calls=tuple(piece for part in parsed for piece in part.calls),
            has_called=parser.num_calls > 0,
        )

    def _decode(self, token: int) -> str:
        """Return the text of a token; decoding leaves special ones out, but markers are read."""
        assert self._text is not None
        marker = self._markers.get(token)
        return self._text.push(token) if marker is None else self._text.flush() + marker

    def _end(self, stop_token: int | None, text: Detokenizer) -> str:
        """Return the text that is still held, and that of the stop token if it is shown."""
        if stop_token is None or not self._display.shows_stop:
            return text.flush()
        name = self._special_stop(stop_token)
        return text.push(stop_token) + text.flush() if name is None else text.flush() + name

    def _stop_reason(self, stop_token: int | None) -> str | int | None:
        if stop_token is None or stop_token in self._stop_ids:
            return stop_token
        return self._special_stop(stop_token)

    def _special_stop(self, stop_token: int) -> str | None:
        """Return the stop string that is this special token, which the text would leave out."""
        codec = self._codec
        found = "" if codec is None else codec.token_names([stop_token])[0]
        return found if found in self._stop_strings else None

    def _prompt_scores(self, prompt: Sequence[TokenLogprobs]) -> tuple[Json | None, ...]:
        num_top = self._display.prompt
        return () if num_top is None else tuple(prompt_logprobs(prompt, num_top, self._codec))

    def _prompt_positions(self, prompt: Sequence[TokenLogprobs]) -> list[Position]:
        """Return the positions of an echoed prompt, decoding it for the offset of each token."""
        num_top = self._display.echoed
        if num_top is None:
            return []
        skips = self._display.skips_special_tokens
        text: Detokenizer | None = None
        if self._codec is not None:
            text = self._codec.detokenizer((), skip_special_tokens=skips)
        positions, length = [], 0
        for scores in prompt:
            positions.append(self._position(replace(scores, top=scores.top[:num_top]), length))
            length += 0 if text is None else len(text.push(scores.token))
        return positions

    def _position(self, scores: TokenLogprobs, offset: int) -> Position:
        as_ids = self._display.tokens_as_ids
        return show_position(scores, offset, self._codec, as_ids=as_ids)

    def _watch(self, text: str) -> str:
        """Look for stop strings, except in the text of the first `min_tokens` tokens."""
        if self._num_unwatched:
            self._num_unwatched -= 1
            return text
        return self._stops.push(text)

    def _finish(self, text: str) -> str:
        shown = self._stops.push(text)
        if self._stops.found:
            self.finish_reason = "stop"
            return shown
        return shown + self._stops.flush()


class Generation:
    """A running job. It must be closed, which frees the slots of unfinished requests.

    It fails at `deadline`, in the loop's time, or never if that is None.
    """

    def __init__(
        self,
        job: Job,
        driver: EngineDriver,
        codec: TextCodec | None,
        metrics: ServerMetrics,
        deadline: float | None,
        shadow: Shadow | None = None,
    ) -> None:
        self._decoders = {
            request.request_id: ChoiceDecoder(index, job, codec)
            for index, request in enumerate(job.requests)
        }
        self._clocks = {
            request.request_id: metrics.clock(num_prompt_tokens, request.sampling.max_tokens)
            for request, num_prompt_tokens in zip(job.requests, job.num_prompt_tokens, strict=True)
        }
        self._num_prompt_tokens = sum(job.num_prompt_tokens)
        self._prompt_lengths = [len(request.prompt) for request in job.requests]
        self._num_generated = [0] * len(job.requests)
        # Those that are counted, and whose number of cached tokens is not known yet.
        self._uncounted = {
            request.request_id
            for request, num_tokens in zip(job.requests, job.num_prompt_tokens, strict=True)
            if num_tokens
        }
        self._num_cached = 0
        self._watch = None if shadow is None else shadow.watch(job, driver)
        requests = job.requests if self._watch is None else (self._watch.request,)
        self._group = driver.open(requests, deadline)

    @property
    def num_choices(self) -> int:
        return len(self._decoders)

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(self._num_prompt_tokens, sum(self._num_generated), self._num_cached)

    def usage_of(self, index: int) -> Usage:
        """Return the tokens of one choice so far, with all of its prompt."""
        return Usage(self._prompt_lengths[index], self._num_generated[index])

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """The finish reason of each choice, `abort` if it has not ended."""
        return [decoder.finish_reason or "abort" for decoder in self._decoders.values()]

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield the delta of each event; raise RequestError if the engine refuses or fails."""
        async for event in self._group:
            decoder = self._decoders[event.request_id]
            if decoder.finish_reason is not None:
                continue  # a stop string was found in an event of the same step
            if self._watch is not None:
                event = self._watch.see(event)
            if _is_long(event):
                delta = await asyncio.to_thread(decoder.push, event)
            else:
                delta = decoder.push(event)
            self._record(event, decoder)
            yield delta

    def close(self) -> None:
        """Abort the requests that have not ended; closing again has no effect."""
        self._group.close()
        for request_id in tuple(self._clocks):
            self._clocks.pop(request_id).end("abort")
        if self._watch is not None:
            self._watch.give_up()
            self._watch = None

    def _record(self, event: TokenEvent, decoder: ChoiceDecoder) -> None:
        """Count the event, and free the slot of a choice ended by a stop string."""
        clock = self._clocks[event.request_id]
        clock.read_prompt(event.admitted)
        if event.request_id in self._uncounted:
            self._uncounted.remove(event.request_id)
            self._num_cached += event.num_cached
        if event.token is not None:
            self._num_generated[decoder.index] += 1
            clock.token()
        if decoder.finish_reason is not None:
            self._group.abort(event.request_id)
            self._clocks.pop(event.request_id).end(decoder.finish_reason)
            if self._watch is not None:
                self._watch.end()
                self._watch = None


def _is_long(event: TokenEvent) -> bool:
    """Say whether an event has so many log-probabilities that they take a while."""
    return bool(event.prompt_logprobs) or (
        event.logprobs is not None and len(event.logprobs.top) > FEW_LOGPROBS
    )


def joined(deltas: Sequence[Delta]) -> Delta:
    """Merge the deltas of one choice, at least one, into a single delta."""
    return Delta(
        index=deltas[-1].index,
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        finish_reason=deltas[-1].finish_reason,
        positions=tuple(position for delta in deltas for position in delta.positions),
        calls=tuple(piece for delta in deltas for piece in delta.calls),
        has_called=deltas[-1].has_called,
        prompt=deltas[0].prompt,
        prompt_logprobs=deltas[0].prompt_logprobs,
        stop_reason=deltas[-1].stop_reason,
    )
