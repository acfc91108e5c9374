"""Server-sent events, and cancellation when a client hangs up."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sgate_serve.errors import RequestError
from sgate_serve.server.error_responses import error_body
from sgate_serve.server.execution.generation import (
    FEW_LOGPROBS,
    Delta,
    Generation,
    Usage,
)
from sgate_serve.server.protocol.generation_requests import StreamOptions
from sgate_serve.server.protocol.generation_responses import ResponseWriter, usage_json
from sgate_serve.server.routes.json_answer import json_bytes

DONE = b"data: [DONE]\n\n"
# `json.dumps` would make an encoder for each event.
ENCODER = json.JSONEncoder(ensure_ascii=False)
# Stands for the text of a chunk; no name or id can have it.
PLACEHOLDER = "\0text\0"

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """Return the result of `work`; if the client hangs up, cancel it and raise ClientDisconnect.

    The request's body must have been read, so that the next message can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A stream of events that calls `close` when it ends, fails, or loses its client."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self.stream_response(send))
        finally:
            self._close()


def event(value: dict[str, Any]) -> bytes:
    """Return one event, on a single `data:` line, as JSON escapes line breaks."""
    return f"data: {ENCODER.encode(value)}\n\n".encode()


def named_event(value: dict[str, Any], *, is_long: bool = False) -> bytes:
    """Return one event that is named by the type of its value; a long one is written in pieces."""
    data = b"data: " + json_bytes(value) + b"\n\n" if is_long else event(value)
    return f"event: {value['type']}\n".encode() + data


class EventWriter:
    """Writes one generation as events, leaving out empty ones unless `every_token` is set."""

    def __init__(
        self,
        generation: Generation,
        writer: ResponseWriter,
        options: StreamOptions,
        *,
        every_token: bool,
    ) -> None:
        self._generation = generation
        self._writer = writer
        self._options = options
        self._every_token = every_token
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    async def events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[bytes]:
        """Yield the stream up to `[DONE]`, with an error event if the generation fails.

        `first` must be awaited before the response starts, so that an earlier error has a status.
        """
        generation = self._generation
        for chunk in self._writer.opening(first, generation.num_choices):
            before = replace(generation.usage_of(first.index), completion_tokens=0)
            yield self._event(chunk, before)
        try:
            for own in await self._events_of(first):
                yield own
            async for delta in deltas:
                for own in await self._events_of(delta):
                    yield own
            if self._options.include_usage:
                yield event(self._writer.closing(generation.usage))
        except RequestError as error:
            yield event(error_body(error))
        yield DONE

    async def _events_of(self, delta: Delta) -> list[bytes]:
        if self._is_text(delta):
            return [self._text_event(delta)] if delta.text else []
        usage = self._generation.usage_of(delta.index)
        if sum(1 + len(position.top) for position in delta.positions) > FEW_LOGPROBS:
            return await asyncio.to_thread(self._written, delta, usage)
        return self._written(delta, usage)

    def _is_text(self, delta: Delta) -> bool:
        """Say whether text is all that an event of the delta could have of its own.

        Tokens and log-probabilities are shown only where every token has an event.
        """
        has_more = delta.calls or delta.finish_reason or delta.prompt_logprobs
        return not (has_more or self._every_token or self._options.continuous_usage_stats)

    def _text_event(self, delta: Delta) -> bytes:
        """Write the event of a delta by putting its text into that of another one."""
        if delta.index not in self._frames:
            usage = self._generation.usage_of(delta.index)
            [whole] = self._written(Delta(delta.index, PLACEHOLDER, ()), usage)
            before, after = whole.split(ENCODER.encode(PLACEHOLDER).encode())
            self._frames[delta.index] = before, after
        before, after = self._frames[delta.index]
        return before + ENCODER.encode(delta.text).encode() + after

    def _written(self, delta: Delta, usage: Usage) -> list[bytes]:
        shows = delta.text or delta.calls or delta.finish_reason or self._every_token
        chunks = self._writer.chunks(delta) if shows else []
        return [self._event(chunk, usage) for chunk in chunks]

    def _event(self, chunk: dict[str, Any], usage: Usage) -> bytes:
        """Return the event of a chunk, with the usage of its choice if it is wanted."""
        if self._options.continuous_usage_stats:
            chunk["usage"] = usage_json(usage)
        elif self._options.include_usage:
            chunk["usage"] = None
        return event(chunk)
