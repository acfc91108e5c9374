"""One turn of a load on a server: in a closed loop or an open one, by number or by time."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

from sgate_serve.bench.load.trace import Trace

# A server that refuses at once would otherwise be asked thousands of times a second.
PAUSE_AFTER_FAILURE = 0.1

Send = Callable[[int], Awaitable[Trace]]
Ended = Callable[[Trace], None]


@dataclass(frozen=True)
class Shape:
    """The shape of a load.

    With `arrivals`, in seconds after the start, it is an open loop of which at most `users`
    requests run at a time; without, a closed one of so many users. `num` and `duration` (seconds)
    limit the requests that are sent.
    """

    users: int | None
    arrivals: tuple[float, ...] | None
    num: int | None
    duration: float | None


@dataclass
class Turn:
    """The requests of one turn that have ended, in that order, and its begin and end.

    `is_whole` says that it was not interrupted.
    """

    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    is_whole: bool = False
    traces: list[Trace] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.ended or time.perf_counter()) - self.began


async def run_turn(send: Send, shape: Shape, first: int, turn: Turn, on_end: Ended) -> None:
    """Send the prompts from index `first` on; the traces that end are added to `turn`.

    Requests that run when time is up are awaited. A cancelled turn keeps what it has.
    """
    indices = itertools.count(first)
    if shape.num is not None:
        indices = itertools.islice(indices, shape.num)  # type: ignore[assignment]

    def keep(trace: Trace) -> None:
        turn.traces.append(trace)
        on_end(trace)

    turn.began = time.perf_counter()
    try:
        if shape.arrivals is None:
            await _closed_loop(send, shape, indices, turn.began, keep)
        else:
            await _open_loop(send, shape, indices, turn.began, keep)
        turn.is_whole = True
    finally:
        turn.ended = time.perf_counter()


async def _closed_loop(
    send: Send, shape: Shape, indices: Iterator[int], began: float, keep: Ended
) -> None:
    async def user() -> None:
        for index in indices:
            if shape.duration is not None and time.perf_counter() - began >= shape.duration:
                return
            trace = await send(index)
            keep(trace)
            if trace.error and shape.duration is not None:
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    users = shape.users or 1
    async with asyncio.TaskGroup() as group:
        for _ in range(users if shape.num is None else min(users, shape.num)):
            group.create_task(user())


async def _open_loop(
    send: Send, shape: Shape, indices: Iterator[int], began: float, keep: Ended
) -> None:
    limit = nullcontext() if shape.users is None else asyncio.Semaphore(shape.users)

    async def request(index: int, arrived: float) -> None:
        async with limit:
            trace = await send(index)
        trace.queued = trace.start - arrived
        keep(trace)

    async with asyncio.TaskGroup() as group:
        for offset, index in zip(shape.arrivals or (), indices, strict=False):
            if (wait := began + offset - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(request(index, time.perf_counter()))
