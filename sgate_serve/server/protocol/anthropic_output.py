"""The JSON of /v1/messages: Anthropic's message, its blocks, and the events of a stream."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgate_serve.errors import RequestError
from sgate_serve.server.error_responses import messages_error
from sgate_serve.server.execution.generation import Delta, Usage
from sgate_serve.server.protocol.generation_responses import whole_calls

Json = dict[str, Any]


@dataclass(frozen=True)
class MessageShape:
    """The fields that are known before the answer."""

    id: str
    model: str

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        """Return the whole message; it has one choice."""
        [delta] = choices
        text = [{"type": "text", "text": delta.text}] if delta.text else []
        calls = [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(arguments)}
            for call, arguments in whole_calls(delta.calls)
        ]
        return self._message([*text, *calls], usage) | _stop(delta)

    def start(self, usage: Usage) -> Json:
        """Return the event at the start of a stream."""
        begun = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        return {"type": "message_start", "message": self._message([], begun)}

    def end(self, delta: Delta, usage: Usage) -> list[Json]:
        """Return the events at the end of a stream."""
        own = {"type": "message_delta", "delta": _stop(delta), "usage": _usage(usage)}
        return [own, {"type": "message_stop"}]

    def error(self, error: RequestError) -> Json:
        """Return the event of an answer that failed."""
        return messages_error(error)

    def _message(self, content: list[Json], usage: Usage) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }


class MessageBlocks:
    """Numbers the blocks of one stream. Each method returns the events of what it adds."""

    def __init__(self) -> None:
        self._num_blocks = 0
        self._open: str | None = None

    def push(self, delta: Delta) -> list[Json]:
        """Add text and calls."""
        events = []
        if delta.text:
            if self._open != "text":
                events += self._begin({"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": delta.text}))
        for call in delta.calls:
            if call.id is not None:
                own: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                events += self._begin(own)
            else:
                piece = {"type": "input_json_delta", "partial_json": call.arguments}
                events.append(self._delta(piece))
        return events

    def close(self) -> list[Json]:
        """End the last block, if there is one."""
        if self._open is None:
            return []
        self._open = None
        return [{"type": "content_block_stop", "index": self._num_blocks - 1}]

    def _begin(self, block: Json) -> list[Json]:
        ended = self.close()
        self._open = block["type"]
        self._num_blocks += 1
        begun = {"type": "content_block_start", "index": self._num_blocks - 1}
        return [*ended, {**begun, "content_block": block}]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}


def _object(arguments: str) -> Json:
    """Return the arguments of a call, none if JSON cannot say them.

    They may be cut off by `max_tokens`, or have a number out of range, half of a character, or
    thousands of levels.
    """
    try:
        value: Json = json.loads(arguments)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}
    return value


def _stop(delta: Delta) -> Json:
    """Return why the answer ended."""
    if delta.finish_reason == "length":
        reason = "max_tokens"
    elif delta.stop_reason is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if delta.has_called else "end_turn"
    return {"stop_reason": reason, "stop_sequence": delta.stop_reason}


def _usage(usage: Usage) -> Json:
    """Return the tokens, of which Anthropic counts cached ones apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
