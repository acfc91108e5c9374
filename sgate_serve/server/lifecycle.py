"""Runs the server process: its socket, signals and log, and an orderly shutdown."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import uvicorn

from sgate_serve.errors import SgateError
from sgate_serve.server.app import create_app
from sgate_serve.server.connection import MAX_HEADER_BYTES, BoundedConnection
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.request_log import start_logging
from sgate_serve.server.routes.models import Load, Models
from sgate_serve.server.routes.service import Service
from sgate_serve.server.server_options import DEFAULT_SHARE, ServerOptions
from sgate_serve.server.shadow.shadow import Shadow

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for streams to write their last events after the grace period.
FLUSH_SECONDS = 5


def serve(
    options: ServerOptions,
    load: Load,
    load_shadow: Load | None = None,
    others: Mapping[str, Load] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT and return 0; `others` are loaded when they are asked for.

    The socket opens at once. `load` runs on the engine thread, and its exception is raised here.
    Raises SgateError if the address cannot be bound. The address is printed to stdout, the log goes
    to stderr.
    """
    start_logging(options.log_format)
    listener = open_listener(options.host, options.port)
    shadow = None
    if load_shadow is not None:
        shadow = Shadow(EngineDriver(load_shadow, options), options.shadow_share or DEFAULT_SHARE)
    first = Service(EngineDriver(load, options), shadow)
    server = DrainingServer(Models(first, options, others), options)
    with listener, server.signals_that_end_it():
        server.run(sockets=[listener])
    if server.load_error is not None:
        raise server.load_error
    return 0


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains: no new connections, a grace period, then open requests fail.

    It also exits when the first model or its shadow cannot be loaded.
    """

    def __init__(self, models: Models, options: ServerOptions) -> None:
        grace = int(options.grace_seconds) + FLUSH_SECONDS
        config = uvicorn.Config(
            create_app(models, options),
            loop="asyncio",
            http=BoundedConnection,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=grace,
        )
        super().__init__(config)
        self._models = models
        self._grace_seconds = options.grace_seconds

    @property
    def load_error(self) -> BaseException | None:
        """Why a model could not be loaded, or the two cannot be compared."""
        driver, shadow = self._models.first.driver, self._models.first.shadow
        if driver.load_error is None and shadow is not None:
            return shadow.load_error(driver)
        return driver.load_error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            sys.stdout.write(f"listening on {address(listener)}\n")
            sys.stdout.flush()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.load_error is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("shutting down; running requests have %g s to end", self._grace_seconds)
        loop = asyncio.get_running_loop()
        cut_off = loop.call_later(self._grace_seconds, self._models.end_requests)
        await super().shutdown(sockets)
        cut_off.cancel()

    @contextmanager
    def signals_that_end_it(self) -> Iterator[None]:
        """Shut down on a signal, even before uvicorn handles signals and after it has stopped.

        At its end, uvicorn re-raises the signals it caught for the handlers it found at its start.
        The default ones would kill the process, which must exit with status 0.
        """

        def end(signum: int, frame: FrameType | None) -> None:
            self.should_exit = True

        previous = {number: signal.signal(number, end) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def open_listener(host: str, port: int) -> socket.socket:
    """Return a bound socket; raise SgateError naming the address if it cannot be bound."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
        # Connections inherit this. asyncio sets it only for sockets that were made with the number
        # of TCP, and without it tokens wait 40 ms for the acknowledgement of the ones before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        raise SgateError(
            f"cannot listen on {host}, port {port}: {error}; choose another host or port"
        ) from error


def address(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return (
        f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
    )
