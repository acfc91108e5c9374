"""The JSON of responses: OpenAI's completion and chat completion objects, whole or in chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sgate_serve.server.execution.generation import Delta, Usage
from sgate_serve.server.protocol.openai_logprobs import Position, chat_logprobs, completion_logprobs
from sgate_serve.text.tool_calls import CallPiece

Json = dict[str, Any]
WriteLogprobs = Callable[[Sequence[Position]], Json]

# vLLM's members, which whole responses have even if there is nothing to say: its clients read them
# without asking.
CHOICE_FACTS = dict.fromkeys(("stop_reason", "token_ids"))
PROMPT_FACTS = dict.fromkeys(("prompt_logprobs", "prompt_token_ids"))


@dataclass(frozen=True)
class ResponseHead:
    """The fields that every object of a response repeats; `created` is in Unix seconds."""

    id: str
    created: int
    model: str
    shows_tokens: bool = False
    shows_logprobs: bool = False
    names_tool: bool = False

    def envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def choice(self, delta: Delta, content: Json, write: WriteLogprobs) -> Json:
        """Return one choice with its content, vLLM's `token_ids` if they were asked for, and its
        `stop_reason` if there is one.

        `write` puts log-probabilities into the endpoint's shape, if they were asked for.
        """
        tokens = {"token_ids": list(delta.tokens)} if self.shows_tokens else {}
        logprobs = write(delta.positions) if self.shows_logprobs else None
        ending = {"logprobs": logprobs, "finish_reason": self._finish_reason(delta)}
        reason = {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}
        return {"index": delta.index, **content, **ending, **reason, **tokens}

    def prompt_facts(self, delta: Delta) -> Json:
        """Return what was asked for about the prompt (as in vLLM), if the delta has it."""
        facts: Json = {}
        if delta.prompt_logprobs:
            facts["prompt_logprobs"] = delta.prompt_logprobs
        if self.shows_tokens and delta.prompt:
            facts["prompt_token_ids"] = delta.prompt
        return facts

    def _finish_reason(self, delta: Delta) -> str | None:
        """Return `tool_calls` after calls, except for that of a named tool, as OpenAI does."""
        is_stop = delta.finish_reason == "stop"
        ends_in_calls = is_stop and delta.has_called and not self.names_tool
        return "tool_calls" if ends_in_calls else delta.finish_reason


class ResponseWriter(Protocol):
    """Writes the response of one endpoint."""

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        """Return the whole response; each choice is a single delta."""

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        """Return the chunks at the start of a stream, before that of the first delta."""

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunks of one delta, at least one."""

    def closing(self, usage: Usage) -> Json:
        """Return the final chunk, which has the usage and no choices."""


@dataclass(frozen=True)
class CompletionWriter:
    """Writes `text_completion`, the same object for whole responses and for chunks."""

    head: ResponseHead

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        facts = CHOICE_FACTS | PROMPT_FACTS
        written = [_whole(self._choice(delta), facts) for delta in choices]
        return self._object(written) | {"usage": usage_json(usage)}

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        return [self._object([self._choice(delta)])]

    def closing(self, usage: Usage) -> Json:
        return self._object([]) | {"usage": usage_json(usage)}

    def _object(self, choices: list[Json]) -> Json:
        return self.head.envelope("text_completion", choices)

    def _choice(self, delta: Delta) -> Json:
        choice = self.head.choice(delta, {"text": delta.text}, completion_logprobs)
        return choice | self.head.prompt_facts(delta)


@dataclass(frozen=True)
class ChatWriter:
    """Writes `chat.completion`, or `chat.completion.chunk`, of which the first has the role."""

    head: ResponseHead
    role: str = "assistant"

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        contents = [{"message": _message(delta, self.role)} for delta in choices]
        written = [
            _whole(self.head.choice(delta, content, chat_logprobs), CHOICE_FACTS)
            for delta, content in zip(choices, contents, strict=True)
        ]
        envelope = self.head.envelope("chat.completion", written) | {"usage": usage_json(usage)}
        # The choices of a chat have one prompt.
        return envelope | PROMPT_FACTS | self.head.prompt_facts(choices[0])

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        facts = self.head.prompt_facts(first)
        return [
            self._chunk(Delta(index, "", ()), {"role": self.role, "content": ""}) | facts
            for index in range(num_choices)
        ]

    def chunks(self, delta: Delta) -> list[Json]:
        contents: list[Json] = [{"content": delta.text}] if delta.text else []
        contents += [{"tool_calls": [_piece(piece)]} for piece in delta.calls]
        # Tokens belong to the first chunk, and the reasons to the last one.
        first, *others = contents or [{}]
        rest = Delta(delta.index, "", (), has_called=delta.has_called)
        begun = replace(delta, finish_reason=None, stop_reason=None)
        chunks = [(begun, first), *((rest, own) for own in others)]
        last, content = chunks[-1]
        last = replace(last, finish_reason=delta.finish_reason, stop_reason=delta.stop_reason)
        chunks[-1] = last, content
        return [self._chunk(own, content) for own, content in chunks]

    def closing(self, usage: Usage) -> Json:
        return self.head.envelope("chat.completion.chunk", []) | {"usage": usage_json(usage)}

    def _chunk(self, delta: Delta, content: Json) -> Json:
        choice = self.head.choice(delta, {"delta": content}, chat_logprobs)
        if not delta.positions:
            choice["logprobs"] = None
        return self.head.envelope("chat.completion.chunk", [choice])


def _whole(choice: Json, facts: Json) -> Json:
    """Return a choice with those facts that it lacks, which come last."""
    return {**choice, **facts, **choice}


def _message(delta: Delta, role: str) -> Json:
    """Return the message of a whole choice."""
    message: Json = {"role": role, "content": delta.text, "refusal": None}
    if not delta.calls:
        return message
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
        for call, arguments in whole_calls(delta.calls)
    ]
    return message | {"content": delta.text or None, "tool_calls": calls}


def whole_calls(pieces: Sequence[CallPiece]) -> list[tuple[CallPiece, str]]:
    """Return the first piece of each call, and all of its arguments."""
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        arguments.setdefault(piece.index, []).append(piece.arguments)
    firsts = [piece for piece in pieces if piece.id is not None]
    return [(first, "".join(arguments[first.index])) for first in firsts]


def _piece(piece: CallPiece) -> Json:
    """Return a part of a call: its id and name, or more of its arguments."""
    function: Json = {"arguments": piece.arguments}
    if piece.id is None:
        return {"index": piece.index, "function": function}
    named = {"name": piece.name, **function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": named}


def usage_json(usage: Usage) -> Json:
    """Return `usage`, with the cached tokens of the prompts if there are any, as vLLM does."""
    details = {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **(details if usage.cached_tokens else {}),
    }
