"""The HTTP client: one pool of connections to a server, and one streamed request at a time on each.

What an answer costs here is taken from the server's time on a machine that runs both, so events are
read as bytes, and only their JSON is parsed.
"""

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from sgate_serve.bench.load.trace import StreamReader, Trace, message_of, shown
from sgate_serve.errors import BenchError

JSON_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
ANSWERED, UNAUTHORISED = 200, 401


def base_url(text: str, flag: str = "") -> str:
    """Return a server's address without a final slash or /v1; raise BenchError naming the flag."""
    named = f"{flag} {text}".lstrip()
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BenchError(f"{named}: {error}; give a URL such as http://127.0.0.1:8000") from error
    try:
        is_whole = url.scheme in ("http", "https") and url.host and (url.port or 1) < 2**16
    except ValueError:  # a host that is no name
        is_whole = False
    if not is_whole:
        raise BenchError(f"{named}: give a URL such as http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


class Client:
    """Sends requests to one server; to be used as an asynchronous context.

    The environment's OPENAI_API_KEY, if there is one, is sent along. `timeout` is in seconds
    without a sign of life.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        key = os.environ.get("OPENAI_API_KEY")
        if key is not None and not key.isascii():
            raise BenchError("OPENAI_API_KEY has a letter that no HTTP header takes; correct it")
        headers = JSON_HEADERS | ({"authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, limits=NO_LIMITS, timeout=httpx.Timeout(timeout)
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, where)

    async def ask(
        self, path: str, body: Mapping[str, Any] | None = None, *, is_needed: bool = False
    ) -> Any:
        """Return the JSON of an answer to GET, or to POST with a body; None if it is an error.

        Raises BenchError if the server cannot be reached, or for an error if the answer is needed.
        """
        try:
            if body is None:
                answer = await self._http.get(path)
            else:
                answer = await self._http.post(path, json=body)
            if is_needed and answer.status_code != ANSWERED:
                raise BenchError(f"{self.url}{path} answers {await _refusal(answer)}")
            return answer.json() if answer.status_code == ANSWERED else None
        except (httpx.HTTPError, OSError) as error:
            raise BenchError(
                f"{self.url}: {reason_of(error)}; start a server there, or correct the URL"
            ) from error
        except (ValueError, RecursionError):
            return None

    async def stream(self, path: str, body: Mapping[str, Any], input_len: int) -> Trace:
        """Send one request and return what it took; an error of any kind is in the trace."""
        content = json.dumps(body).encode()
        trace = Trace(time.perf_counter(), input_len)
        reader = StreamReader(trace)
        try:
            async with self._http.stream("POST", path, content=content) as answer:
                trace.status = answer.status_code
                if answer.status_code != ANSWERED:
                    trace.error = await _refusal(answer)
                    return trace
                async for piece in answer.aiter_raw():
                    reader.feed(piece, time.perf_counter())
        except httpx.ReadTimeout:
            trace.error = f"nothing came for {self._timeout:g} s (--timeout)"
        except (httpx.HTTPError, OSError) as error:
            trace.error = reason_of(error)
        reader.close()
        return trace


async def _refusal(answer: httpx.Response) -> str:
    content = await answer.aread()
    try:
        message = message_of(json.loads(content))
    except (ValueError, RecursionError):
        message = " ".join(content.decode(errors="replace").split())[:200]
    remedy = "; give its key as OPENAI_API_KEY" if answer.status_code == UNAUTHORISED else ""
    return f"HTTP {answer.status_code}: {shown(message) or answer.reason_phrase}{remedy}"


def reason_of(error: Exception) -> str:
    """Return what went wrong with a connection, in words."""
    names: Mapping[type[Exception], str] = {
        httpx.ConnectError: "no server answers",
        httpx.ConnectTimeout: "no server answers in time",
        httpx.ReadTimeout: "the server does not answer in time",
        httpx.RemoteProtocolError: "the server cut the connection",
        httpx.ReadError: "the server cut the connection",
    }
    text = " ".join(str(error).split())
    known = names.get(type(error), type(error).__name__)
    return f"{known} ({text})" if text else known
