"""The JSON of /v1/responses: the response, its items, and the typed events of a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

from sgate_serve.errors import RequestError
from sgate_serve.server.execution.generation import Delta, Usage
from sgate_serve.server.protocol.openai_logprobs import Position, chat_logprobs
from sgate_serve.server.protocol.responses_requests import ResponsesRequest
from sgate_serve.text.tool_calls import CallPiece

Json = dict[str, Any]


@dataclass(frozen=True)
class ResponseShape:
    """The fields of a response that repeat its request; `created` is in Unix seconds."""

    id: str
    created: int
    model: str
    request: ResponsesRequest

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        """Return the whole response; it has one choice."""
        [delta] = choices
        items = self.items()
        items.push(delta)
        items.finish(delta.finish_reason == "length")
        return self.ended(items, usage)

    def items(self) -> "OutputItems":
        """Return the items of an answer that begins."""
        return OutputItems(shows_logprobs=self.request.shows_logprobs)

    def ended(self, items: "OutputItems", usage: Usage) -> Json:
        """Return the response with its output."""
        status = "incomplete" if items.is_cut_off else "completed"
        details = {"reason": "max_output_tokens"} if items.is_cut_off else None
        own = {"incomplete_details": details, "output": items.whole, "usage": _usage(usage)}
        return self.response(status, own)

    def failed(self, items: "OutputItems", error: RequestError) -> Json:
        """Return the response of a request that failed while it was answered."""
        reason = {"code": "server_error", "message": str(error)}
        return self.response("failed", {"error": reason, "output": items.whole})

    def response(self, status: str, fields: Mapping[str, Any] | None = None) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self.repeated,
            **(fields or {}),
        }

    @cached_property
    def repeated(self) -> Json:
        """What is repeated of the request; with long tools it takes a while."""
        body = self.request
        own = body.text.model_dump(by_alias=True, exclude_none=True)
        choice: Any = body.tool_choice
        return {
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "parallel_tool_calls": body.parallel_tool_calls,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}, **own},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for _, tool in body.functions],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
        }


@dataclass
class OutputItem:
    """A message or a call that is being written: its fields, and the pieces of its text.

    `logprobs` are of the tokens of a message.
    """

    fields: Json
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    status: str = "in_progress"

    @property
    def is_message(self) -> bool:
        return bool(self.fields["type"] == "message")

    @property
    def json(self) -> Json:
        """The item as far as it is written."""
        own = {**self.fields, "status": self.status}
        if not self.is_message:
            return {**own, "arguments": "".join(self.pieces)}
        is_new = not self.pieces and self.status == "in_progress"
        return {**own, "content": [] if is_new else [self.part]}

    @property
    def part(self) -> Json:
        """The one part of a message."""
        text = "".join(self.pieces)
        own = {"type": "output_text", "text": text, "annotations": []}
        return {**own, "logprobs": [*self.logprobs]}


class OutputItems:
    """The items of one answer. Each method returns the events of what it adds, without numbers."""

    def __init__(self, *, shows_logprobs: bool = False) -> None:
        self._items: list[OutputItem] = []
        self._shows_logprobs = shows_logprobs
        # Of tokens whose text is still to come.
        self._held: list[Position] = []
        self.is_cut_off = False

    @property
    def whole(self) -> list[Json]:
        return [item.json for item in self._items]

    def push(self, delta: Delta) -> list[Json]:
        """Add text and calls."""
        if self._shows_logprobs:
            self._held += delta.positions
        events = self._add_text(delta.text) if delta.text else []
        for piece in delta.calls:
            events += self._add_call(piece)
        return events

    def finish(self, is_cut_off: bool) -> list[Json]:
        """End the last item; an answer without anything is an empty message."""
        self.is_cut_off = is_cut_off
        events = [] if self._items else self._open(_new_message())
        self._items[-1].logprobs += self._scores()
        return events + self._close("incomplete" if is_cut_off else "completed")

    def _add_text(self, text: str) -> list[Json]:
        is_open = bool(self._items) and self._items[-1].status == "in_progress"
        events = []
        if not is_open or not self._items[-1].is_message:
            events = self._close() + self._open(_new_message())
        logprobs = self._scores()
        self._items[-1].pieces.append(text)
        self._items[-1].logprobs += logprobs
        delta = {"type": "response.output_text.delta", "delta": text, "logprobs": logprobs}
        return [*events, self._placed(delta, content_index=0)]

    def _scores(self) -> list[Json]:
        """Return the log-probabilities that are held, which thereby no longer are."""
        held, self._held = self._held, []
        content: list[Json] = chat_logprobs(held)["content"]
        return content

    def _add_call(self, piece: CallPiece) -> list[Json]:
        if piece.id is not None:
            own = {"id": _new_id("fc"), "type": "function_call"}
            own |= {"call_id": piece.id, "name": piece.name or ""}
            return self._close() + self._open(OutputItem(own))
        self._items[-1].pieces.append(piece.arguments)
        kind = "response.function_call_arguments.delta"
        return [self._placed({"type": kind, "delta": piece.arguments})]

    def _open(self, item: OutputItem) -> list[Json]:
        self._items.append(item)
        index = len(self._items) - 1
        added = {"type": "response.output_item.added", "output_index": index, "item": item.json}
        if not item.is_message:
            return [added]
        part = {"type": "response.content_part.added", "part": item.part}
        return [added, self._placed(part, content_index=0)]

    def _close(self, status: str = "completed") -> list[Json]:
        if not self._items or self._items[-1].status != "in_progress":
            return []
        item, index = self._items[-1], len(self._items) - 1
        text = "".join(item.pieces)
        if item.is_message:
            done = {"type": "response.output_text.done", "text": text, "logprobs": item.logprobs}
            part = {"type": "response.content_part.done", "part": item.part}
            events = [self._placed(own, content_index=0) for own in (done, part)]
        else:
            own = {"type": "response.function_call_arguments.done", "arguments": text}
            events = [self._placed({**own, "name": item.fields["name"]})]
        item.status = status
        ended = {"type": "response.output_item.done", "output_index": index, "item": item.json}
        return [*events, ended]

    def _placed(self, event: Json, **more: int) -> Json:
        """Return an event with the place of the last item."""
        place = {"item_id": self._items[-1].fields["id"], "output_index": len(self._items) - 1}
        return {**event, **place, **more}


def _new_message() -> OutputItem:
    return OutputItem({"id": _new_id("msg"), "type": "message", "role": "assistant"})


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid4().hex}"


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
