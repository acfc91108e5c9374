"""The JSON of responses: OpenAI's completion and chat completion objects, whole or in chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sgate_serve.server.execution.generation import Delta, Usage
from sgate_serve.server.protocol.openai_logprobs import Position, chat_logprobs, completion_logprobs

Json = dict[str, Any]
WriteLogprobs = Callable[[Sequence[Position]], Json]


@dataclass(frozen=True)
class ResponseHead:
    """The fields that every object of a response repeats; `created` is in Unix seconds."""

    id: str
    created: int
    model: str
    shows_tokens: bool = False
    shows_logprobs: bool = False

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
        ending = {"logprobs": logprobs, "finish_reason": delta.finish_reason}
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


class ResponseWriter(Protocol):
    """Writes the response of one endpoint."""

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        """Return the whole response; each choice is a single delta."""

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        """Return the chunks at the start of a stream, before that of the first delta."""

    def chunk(self, delta: Delta) -> Json:
        """Return the chunk of one delta."""

    def closing(self, usage: Usage) -> Json:
        """Return the final chunk, which has the usage and no choices."""


@dataclass(frozen=True)
class CompletionWriter:
    """Writes `text_completion`, the same object for whole responses and for chunks."""

    head: ResponseHead

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        written = [self._choice(delta) for delta in choices]
        return self._object(written) | {"usage": usage_json(usage)}

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        return []

    def chunk(self, delta: Delta) -> Json:
        return self._object([self._choice(delta)])

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
        written = [
            self.head.choice(
                delta,
                {"message": {"role": self.role, "content": delta.text, "refusal": None}},
                chat_logprobs,
            )
            for delta in choices
        ]
        envelope = self.head.envelope("chat.completion", written)
        # The choices of a chat have one prompt.
        return envelope | {"usage": usage_json(usage)} | self.head.prompt_facts(choices[0])

    def opening(self, first: Delta, num_choices: int) -> list[Json]:
        facts = self.head.prompt_facts(first)
        return [
            self._chunk(Delta(index, "", ()), {"role": self.role, "content": ""}) | facts
            for index in range(num_choices)
        ]

    def chunk(self, delta: Delta) -> Json:
        return self._chunk(delta, {"content": delta.text} if delta.text else {})

    def closing(self, usage: Usage) -> Json:
        return self.head.envelope("chat.completion.chunk", []) | {"usage": usage_json(usage)}

    def _chunk(self, delta: Delta, content: Json) -> Json:
        choice = self.head.choice(delta, {"delta": content}, chat_logprobs)
        return self.head.envelope("chat.completion.chunk", [choice])


def usage_json(usage: Usage) -> Json:
    """Return `usage`, with the cached tokens of the prompts if there are any, as vLLM does."""
    details = {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **(details if usage.cached_tokens else {}),
    }
