"""The models of one server by name: the first is always loaded, the others when they are asked for.

No more than `max_loaded_models` are in memory. The one that has been idle the longest makes room.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sgate_serve.errors import RequestError, SgateError
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.excerpt import excerpt
from sgate_serve.server.routes.service import Service
from sgate_serve.server.routes.streaming import until_disconnect
from sgate_serve.server.served_model import ServedModel
from sgate_serve.server.server_options import ServerOptions

logger = logging.getLogger(__name__)

Load = Callable[[], ServedModel]


@dataclass
class _Entry:
    """A model that may be loaded; `num_users` calls hold it, and the last one let go at `idle`."""

    name: str
    load: Load
    service: Service | None = None
    num_users: int = 0
    idle: float = 0.0

    @property
    def is_loaded(self) -> bool:
        """Say whether the model is in memory, and its engine works."""
        driver = None if self.service is None else self.service.driver
        return driver is not None and driver.loaded is not None and not driver.has_ended

    @property
    def is_idle(self) -> bool:
        """Say whether the model can be unloaded, which one that is being loaded cannot."""
        has_settled = self.service is not None and self.service.driver.settled.is_set()
        return has_settled and not self.num_users


class Models:
    """The services of a server's models, of which `first` answers calls that name none."""

    def __init__(
        self, first: Service, options: ServerOptions, others: Mapping[str, Load] | None = None
    ) -> None:
        self.first = first
        self._options = options
        self._others = {name: _Entry(name, load) for name, load in (others or {}).items()}
        # One model at a time makes room and begins to load.
        self._starting = asyncio.Lock()

    async def named(self, name: str | None, request: Request) -> Service:
        """Return the service of a model, loaded for as long as this request runs.

        Raises RequestError 404 for an unknown name, 503 if no loaded model can make room, and 500
        if the model cannot be loaded.
        """
        entry = self._others.get(name or "")
        if entry is None:
            if name is not None and self.first.driver.state == "ready":
                self.check_known(name)
            return self.first
        entry.num_users += 1
        request.state.leases.append(entry)
        return await until_disconnect(request.receive, self._loaded(entry))

    def loaded(self) -> Iterator[Service]:
        """Yield the services whose models are in memory; others than the first must also work."""
        if self.first.driver.loaded:
            yield self.first
        for entry in self._others.values():
            if entry.service is not None and entry.is_loaded:
                yield entry.service

    def unloaded(self) -> Iterator[str]:
        """Yield the names of the models that are not in memory."""
        yield from (entry.name for entry in self._others.values() if not entry.is_loaded)

    def end_requests(self) -> None:
        """Refuse new requests and fail the open ones, because the server is shutting down."""
        for service in self._services():
            service.driver.end_requests()

    async def stop(self) -> None:
        for service in self._services():
            await service.driver.stop()

    def _services(self) -> list[Service]:
        others = [entry.service for entry in self._others.values()]
        return [self.first, *(service for service in others if service is not None)]

    def check_known(self, name: str) -> None:
        """Raise RequestError 404 naming all models unless the first one has this name."""
        first = self.first.driver.model
        if not first.has_name(name):
            listed = ", ".join(map(repr, (*first.names, *self._others)))
            raise RequestError(
                f"the model {excerpt(name)} is not served here; this server has {listed}",
                param="model",
                status=404,
                code="model_not_found",
            )

    async def _loaded(self, entry: _Entry) -> Service:
        """Load a model unless it is loaded or about to be."""
        service = await self._started(entry)
        await service.driver.settled.wait()
        error = service.driver.load_error
        if error is None:
            return service
        is_ours = isinstance(error, SgateError)
        if not service.is_reported:
            service.is_reported = True
            trace = None if is_ours else error
            logger.error("the model %r cannot be loaded: %s", entry.name, error, exc_info=trace)
        reason = str(error) if is_ours else "this server's log has the reason"
        raise RequestError(
            f"the model {entry.name!r} cannot be loaded: {reason}", status=500
        ) from error

    async def _started(self, entry: _Entry) -> Service:
        """Return the service of a model whose loading has begun, now if it must."""
        self.first.driver.check_accepts()
        async with self._starting:
            if entry.service is not None and entry.service.driver.has_ended:
                await self._unload(entry)  # it failed, and is tried again
            if entry.service is None:
                await self._make_room(entry)
                entry.service = Service(EngineDriver(entry.load, self._options))
                entry.service.driver.start()
            return entry.service

    async def _make_room(self, wanted: _Entry) -> None:
        """Unload the models that have been idle the longest, until another one may be loaded."""
        most = self._options.max_loaded_models
        while most is not None and len(self._services()) >= most:
            idle = [entry for entry in self._others.values() if entry.is_idle]
            if not idle:
                raise RequestError(
                    f"{wanted.name!r} is not loaded, and all of the {most} models that this server "
                    "may hold are in use; try again later",
                    status=503,
                )
            entry = min(idle, key=lambda each: each.idle)
            logger.info("unloading %r to make room for %r", entry.name, wanted.name)
            await self._unload(entry)

    async def _unload(self, entry: _Entry) -> None:
        assert entry.service is not None
        await entry.service.driver.stop()
        entry.service = None


class Leases:
    """Keeps the models of a request loaded until its response has been sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        leases: list[_Entry] = []
        scope["state"]["leases"] = leases
        try:
            await self._app(scope, receive, send)
        finally:
            for entry in leases:
                entry.num_users -= 1
                entry.idle = asyncio.get_running_loop().time()
