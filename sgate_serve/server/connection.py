"""One HTTP connection, whose headers must be short and come within a time.

Uvicorn bounds neither the time of headers nor what a client sends after its answer, and answers
what it cannot read as plain text. H11 takes long over each piece of a body.
"""

import asyncio
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from sgate_serve.errors import RequestError
from sgate_serve.server.error_responses import error_json

MAX_HEADER_BYTES = 32 * 1024
HEADER_SECONDS = 20.0
# h11 takes about 40 µs for a chunk of one byte, so what is read at once must be little.
READ_BYTES = 16 * 1024
CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"
# How long a client may go on sending a body after its answer; it may read the answer only then.
LINGER_SECONDS = 5.0
REASONS = {
    400: "this is not an HTTP request that can be read",
    408: f"the headers of a request did not come within {HEADER_SECONDS:g} s",
    431: f"the headers are over {MAX_HEADER_BYTES} bytes; send fewer or shorter ones",
}


class ChunkingConnection(h11.Connection):
    """Writes pieces of chunked bodies at once: they leave the state of a connection as it is."""

    _is_chunked = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # overloads
        if self._is_chunked and isinstance(event, h11.Data) and self.our_state is h11.SEND_BODY:
            # An empty piece would end the body; h11 leaves it out.
            return b"%x\r\n%b\r\n" % (len(event.data), event.data) if event.data else b""
        output = super().send(event)
        if isinstance(event, h11.Response):
            self._is_chunked = CHUNKED in (output or b"").lower()
        return output


class BoundedConnection(H11Protocol):
    """Refuses long headers with 431 and slow ones with 408.

    The state of each request has `first_byte`, the loop's time at which it began to come.
    """

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        self.conn = ChunkingConnection(h11.SERVER, MAX_HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # asyncio's own have it
        self._time(HEADER_SECONDS, self._refuse, 408)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE:
            self._begin()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and not self._is_answered():
            self._stop_timer()

    def on_response_complete(self) -> None:
        self._note_begin()  # of the next request, if it came already
        super().on_response_complete()
        if self._is_answered():
            self._time(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer an error of h11, which uvicorn is handling."""
        error = sys.exc_info()[1]
        self._refuse(getattr(error, "error_status_hint", 400))

    def _begin(self) -> None:
        """Start the clock of a request, unless it runs already."""
        if not self.conn.trailing_data[0]:
            self._note_begin()
        if self._timer is None:
            self._time(HEADER_SECONDS, self._refuse, 408)

    def _note_begin(self) -> None:
        # Uvicorn copies it into the scope of each request.
        self.app_state = {**self.app_state, "first_byte": self.loop.time()}

    def _is_answered(self) -> bool:
        """Say whether a request has its whole response before its whole body came."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _refuse(self, status: int) -> None:
        """Answer what is no request, as there is none that the application could answer."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # it has begun an answer
            self.transport.close()
            return
        error = RequestError(REASONS.get(status, REASONS[400]), status=status)
        headers = [("content-type", "application/json"), ("connection", "close")]
        reason = HTTPStatus(status).phrase
        response = h11.Response(status_code=status, headers=headers, reason=reason)
        for event in (response, h11.Data(data=error_json(error).encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _time(self, seconds: float, call: Callable[..., None], *arguments: int) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, call, *arguments)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
