"""Connects the event loop with the one thread that owns the engine.

The thread loads the model, then applies commands and steps the engine. Requests are opened, events
received and groups closed on the event loop only, so no locks are needed. If the engine raises,
every open request fails and no new one starts.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal

from sgate_serve.engines.contract import (
    EngineStats,
    PooledOutput,
    PoolingRequest,
    Request,
    TokenEvent,
)
from sgate_serve.environment import ENGINE_THREAD
from sgate_serve.errors import RequestError
from sgate_serve.server.request_group import EngineEvent, EventT, RequestGroup, is_last
from sgate_serve.server.served_model import AnyEngine, ServedModel
from sgate_serve.server.server_options import ServerOptions

logger = logging.getLogger(__name__)

# A step of a large model may take seconds. The thread is a daemon, so exiting does not wait for it.
STOP_SECONDS = 10.0

State = Literal["loading", "ready", "stopping", "failed"]
REASONS: Mapping[State, str] = {
    "loading": "the model is still loading; try again when /health answers 200",
    "stopping": "the server is shutting down; send the request to another one",
    "failed": "the engine failed and this server must be restarted; its log has the traceback",
}


@dataclass(frozen=True)
class Abort:
    """Tells the engine thread to abort a request."""

    request_id: str


@dataclass(frozen=True)
class Stop:
    """Tells the engine thread to stop."""


Command = Request | PoolingRequest | Abort | Stop


class EngineDriver:
    """Runs one engine for all HTTP calls. Public methods must be called on the event loop."""

    def __init__(self, load: Callable[[], ServedModel], options: ServerOptions) -> None:
        self.state: State = "loading"
        self.load_error: BaseException | None = None
        # Whether loading has ended, well or not.
        self.settled = asyncio.Event()
        self.loaded: ServedModel | None = None
        # The limits of calls without an answer, which the shutdown ends.
        self.unanswered: set[asyncio.Timeout] = set()
        self.stats = EngineStats(num_running=0, num_waiting=0, kv_cache_usage=0.0)
        self._load = load
        self._options = options
        self._loop: asyncio.AbstractEventLoop
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._groups: dict[str, RequestGroup[Any]] = {}
        self._thread = Thread(target=self._run, name=ENGINE_THREAD, daemon=True)

    @property
    def model(self) -> ServedModel:
        """The loaded model; raises RequestError 503 while requests cannot be served."""
        self.check_ready()
        assert self.loaded is not None
        return self.loaded

    @property
    def has_ended(self) -> bool:
        """Whether the engine has failed or was stopped, so that it will serve nothing more."""
        return self.state in ("failed", "stopping")

    def check_ready(self) -> None:
        """Raise RequestError 503 unless requests can be served now."""
        if self.state != "ready":
            raise self._unavailable()

    def check_accepts(self) -> None:
        """Raise RequestError 503 if the server is shutting down."""
        if self.state == "stopping":
            raise self._unavailable()

    def check_room(self, num_new: int) -> None:
        """Raise RequestError 429 if the queue has no room for `num_new`, 400 if it never could.

        Requests are waiting if they have not ended and were not running after the last step.
        """
        limit = self._options.max_queue
        if num_new > limit:
            raise RequestError(
                f"this call has {num_new} prompts and choices, but the queue of this server holds "
                f"{limit}; send fewer in one call"
            )
        if len(self._groups) - self.stats.num_running + num_new > limit:
            raise RequestError(
                f"the queue of this server, which holds {limit}, is full; try again later",
                status=429,
                code="queue_full",
            )

    @property
    def num_calls(self) -> int:
        """How many calls have requests that run or wait."""
        return len(set(self._groups.values()))

    def start(self) -> None:
        """Start loading; must be called on the event loop that will receive the events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread after its current step, without waiting more than STOP_SECONDS."""
        is_loading = self.loaded is None
        self.end_requests()
        self._commands.put(Stop())
        if not is_loading:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def deadline(self, begin: float) -> float | None:
        """Return when a call that began at `begin` must have ended; None for no limit."""
        seconds = self._options.request_timeout_seconds
        return None if seconds is None else begin + seconds

    def overdue(self) -> RequestError:
        """Return the error of a call that has no answer at its deadline or at the shutdown."""
        if self.state != "ready":
            return self._unavailable()
        return RequestError(
            f"the request took longer than {self._options.request_timeout_seconds:g} s, this "
            "server's limit; ask for fewer tokens, or try again when it is less busy",
            status=504,
            code="request_timeout",
        )

    def open(self, requests: Sequence[Request], deadline: float | None) -> RequestGroup[TokenEvent]:
        """Queue the requests and return the group that yields their events and must be closed.

        Raises RequestError 503 if the engine is not running, or 429 if the queue is full.
        """
        group = RequestGroup[TokenEvent](_ids(requests), self._abort)
        return self._queue(requests, group, deadline)

    def open_pooling(
        self, requests: Sequence[PoolingRequest], deadline: float | None
    ) -> RequestGroup[PooledOutput]:
        """Queue requests of an encoder, as `open` does."""
        group = RequestGroup[PooledOutput](_ids(requests), self._abort)
        return self._queue(requests, group, deadline)

    def _queue(
        self,
        requests: Sequence[Request | PoolingRequest],
        group: RequestGroup[EventT],
        deadline: float | None,
    ) -> RequestGroup[EventT]:
        self.check_ready()
        self.check_room(len(requests))
        if deadline is not None:
            group.end_at(deadline, self.overdue)
        for request in requests:
            self._groups[request.request_id] = group
            self._commands.put(request)
        return group

    def _abort(self, request_id: str) -> None:
        self._groups.pop(request_id, None)
        self._commands.put(Abort(request_id))

    def end_requests(self) -> None:
        """Refuse new requests and fail the open ones, because the server is shutting down."""
        if self.state != "failed":
            self.state = "stopping"
        self.settled.set()
        self._fail_groups(self._unavailable())
        for limit in self.unanswered:
            if not limit.expired():
                limit.reschedule(self._loop.time())

    def _unavailable(self) -> RequestError:
        return RequestError(REASONS[self.state], status=503)

    def _fail_groups(self, error: RequestError) -> None:
        for group in set(self._groups.values()):
            group.receive(error)

    # Called on the event loop, by the engine thread's `_post`.

    def _finish_loading(self, model: ServedModel) -> None:
        self.loaded = model
        self.settled.set()
        if self.state == "loading":
            self.state = "ready"
            own = model.tool_format
            logger.info(
                "serving model=%r engine=%s tool_calls=%s",
                model.name,
                model.engine.name,
                "none" if own is None else own.name,
            )

    def _fail_loading(self, error: BaseException) -> None:
        self.state, self.load_error = "failed", error
        self.settled.set()

    def _fail(self) -> None:
        self.state = "failed"
        self._fail_groups(RequestError(REASONS["failed"], status=500))

    def _deliver(self, events: Sequence[EngineEvent], stats: EngineStats) -> None:
        self.stats = stats
        for event in events:
            group = self._groups.get(event.request_id)
            if group is None:
                continue  # aborted while this event was on its way
            failure = event.error if isinstance(event, TokenEvent) else None
            group.receive(failure or event)
            if is_last(event):
                del self._groups[event.request_id]

    def _refuse(self, request_id: str, error: RequestError) -> None:
        group = self._groups.pop(request_id, None)
        if group is not None:
            group.receive(error)

    # Runs on the engine thread.

    def _run(self) -> None:
        try:
            model = self._load()
        except BaseException as error:  # even SystemExit, or the state would stay "loading"
            self._post(self._fail_loading, error)
            return
        self._post(self._finish_loading, model)
        try:
            while self._advance(model.engine):
                pass
        except BaseException:
            logger.exception("the engine failed; open requests end with an error")
            self._post(self._fail)

    def _advance(self, engine: AnyEngine) -> bool:
        """Apply the queued commands, then step once if there is work; return False to stop."""
        for command in self._take_commands(wait=not engine.has_work()):
            match command:
                case Stop():
                    return False
                case Abort(request_id):
                    engine.abort(request_id)
                case request:
                    self._add(engine, request)
        events = engine.step() if engine.has_work() else ()
        self._post(self._deliver, events, engine.stats())
        return True

    def _add(self, engine: AnyEngine, request: Request | PoolingRequest) -> None:
        try:
            engine.add(request)
        except RequestError as error:
            self._post(self._refuse, request.request_id, error)

    def _take_commands(self, *, wait: bool) -> Iterator[Command]:
        if wait:
            yield self._commands.get()
        with suppress(Empty):
            while True:
                yield self._commands.get_nowait()

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        # The loop is closed if the server has stopped waiting for this thread.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)


def _ids(requests: Sequence[Request | PoolingRequest]) -> list[str]:
    return [request.request_id for request in requests]
