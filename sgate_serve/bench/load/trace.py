"""One request as the client saw it, read from the events of its stream."""

import json
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"
NO_TOKEN = "the stream ended before the first token"
# No context is so long, and no reason needs more.
MOST_TOKENS, MOST_CHARACTERS = 2**31, 200
CUT = "the stream ended without [DONE]"


@dataclass
class Trace:
    """The times of one request in seconds, and its lengths in tokens.

    `start` is when it was sent, on the clock of `time.perf_counter`; `ttft` the time to its first
    token, `itl` the gaps between the following ones, `latency` the time to the last one, and
    `queued` how long it waited here for --max-concurrency. `error` is empty if it succeeded.
    """

    start: float
    input_len: int
    output_len: int = 0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    queued: float = 0.0
    text: str = ""
    error: str = ""
    status: int = 0

    @property
    def tpot(self) -> float:
        """The mean time per token after the first; 0 if there is only one."""
        return (self.latency - self.ttft) / (self.output_len - 1) if self.output_len > 1 else 0.0


def count_of(value: Any) -> int | None:
    """Return a server's count of tokens; None for what is no such count."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def shown(text: str) -> str:
    """Return a server's text on one line, cut, without characters that control a terminal."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())[:MOST_CHARACTERS]


class StreamReader:
    """Reads server-sent events into a trace, in pieces as they arrive."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._rest = b""
        self._is_done = False
        self._num_tokens = 0

    def feed(self, piece: bytes, now: float) -> None:
        """Read a piece that arrived at `now`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read(line[5:].strip(), now)

    def close(self) -> None:
        """Say in the trace why it failed, if it did; a server that counts nothing is counted."""
        trace = self._trace
        if not trace.error and not self._num_tokens:
            trace.error = NO_TOKEN
        if not trace.error and not self._is_done:
            trace.error = CUT
        trace.output_len = 0 if trace.error else trace.output_len or self._num_tokens

    def _read(self, payload: bytes, now: float) -> None:
        if payload == DONE:
            self._is_done = True
            return
        try:
            event = json.loads(payload)
            self._take(event, now)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            self._trace.error = f"not an event of OpenAI's API: {payload[:80]!r}"

    def _take(self, event: dict[str, Any], now: float) -> None:
        trace = self._trace
        if event.get("error"):
            trace.error = shown(message_of(event))
        if choices := event.get("choices"):
            self._take_choice(choices[0], now)
        if usage := event.get("usage"):
            trace.output_len = count_of(usage.get("completion_tokens")) or 0
            trace.input_len = count_of(usage.get("prompt_tokens")) or trace.input_len

    def _take_choice(self, choice: dict[str, Any], now: float) -> None:
        trace, delta = self._trace, choice.get("delta")
        if delta is None:
            text = choice.get("text")
        else:
            text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        opens_only = delta is not None and not text and choice.get("finish_reason") is None
        if opens_only and not self._num_tokens:
            return  # the role of a chat, which a server may send before it computes anything
        since_start = now - trace.start
        if not self._num_tokens:
            trace.ttft = since_start
        else:
            trace.itl.append(since_start - trace.latency)
        trace.latency = since_start
        trace.text += text or ""
        self._num_tokens += 1


def message_of(body: Any) -> str:
    """Return the message of an error that a server sent as JSON, OpenAI's or another."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join((error if isinstance(error, str) else json.dumps(error)).split())
