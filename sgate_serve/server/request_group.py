"""The engine requests of one HTTP call, as the event loop sees them."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sgate_serve.engines.contract import PooledOutput, TokenEvent
from sgate_serve.errors import RequestError

EngineEvent = TokenEvent | PooledOutput
EventT = TypeVar("EventT", TokenEvent, PooledOutput)


class RequestGroup(Generic[EventT]):
    """Iterates over the events of a group of requests until all have ended. It must be closed.

    `abort` is called with the id of a request that is to be aborted.
    """

    def __init__(self, request_ids: Sequence[str], abort: Callable[[str], None]) -> None:
        self._abort = abort
        self._open = set(request_ids)
        self._received: deque[EventT | RequestError] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, item: EventT | RequestError) -> None:
        self._received.append(item)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def end_at(self, deadline: float, error: Callable[[], RequestError]) -> None:
        """Abort the requests at a time of the loop; the iterator then raises `error`."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self._time_out, error)

    def __aiter__(self) -> "RequestGroup[EventT]":
        return self

    async def __anext__(self) -> EventT:
        """Return the next event; raise RequestError if the engine refuses a request or fails."""
        while self._open:
            item = await self._next()
            if isinstance(item, RequestError):
                raise item
            if item.request_id not in self._open:
                continue  # aborted while this event was on its way
            if is_last(item):
                self._open.discard(item.request_id)
            return item
        raise StopAsyncIteration

    async def _next(self) -> EventT | RequestError:
        """Return the next item; like asyncio.Queue for one reader, in a fraction of the time."""
        if self._received:
            # Reading a backlog never waits, so let the loop notice a disconnect and serve others.
            await asyncio.sleep(0)
        else:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._received.popleft()

    def abort(self, request_id: str) -> None:
        """Free the request's slot before the engine's next step, unless the request has ended."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._abort(request_id)

    def close(self) -> None:
        """Abort all requests that have not ended."""
        if self._timer is not None:
            self._timer.cancel()
        for request_id in tuple(self._open):
            self.abort(request_id)

    def _time_out(self, error: Callable[[], RequestError]) -> None:
        # They stay open in this group, so that even a slow reader still gets the error.
        for request_id in self._open:
            self._abort(request_id)
        self.receive(error())


def is_last(event: EngineEvent) -> bool:
    """Say whether a request ends with this event; pooling requests have a single one."""
    return isinstance(event, PooledOutput) or event.finish_reason is not None
