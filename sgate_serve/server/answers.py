"""The JSON of answers: OpenAI's completion and chat completion objects, whole and in chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sgate_serve.server.generation import Delta, Usage
from sgate_serve.server.logprobs import Position, chat_logprobs, completion_logprobs

Json = dict[str, Any]
WriteLogprobs = Callable[[Sequence[Position]], Json]


@dataclass(frozen=True)
class AnswerHead:
    """What every object of one answer repeats; `created` is in Unix seconds."""

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
        """Return one choice around its content; `token_ids` is vLLM's, if the client asked.

        `write` gives log-probabilities the endpoint's shape, if they were asked for.
        """
        tokens = {"token_ids": list(delta.tokens)} if self.shows_tokens else {}
        logprobs = write(delta.positions) if self.shows_logprobs else None
        ending = {"logprobs": logprobs, "finish_reason": delta.finish_reason}
        return {"index": delta.index, **content, **ending, **tokens}


class Answer(Protocol):
    """How one endpoint writes its answer."""

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        """Return the whole answer, each choice joined to one delta."""

    def opening(self, num_choices: int) -> list[Json]:
        """Return the chunks that a stream begins with."""

    def chunk(self, delta: Delta) -> Json:
        """Return one chunk of a stream."""

    def closing(self, usage: Usage) -> Json:
        """Return the chunk without choices that carries the usage."""


@dataclass(frozen=True)
class CompletionAnswer:
    """`text_completion`, the same object for whole answers and for chunks."""

    head: AnswerHead

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        written = [self._choice(delta) for delta in choices]
        return self._object(written) | {"usage": usage_json(usage)}

    def opening(self, num_choices: int) -> list[Json]:
        return []

    def chunk(self, delta: Delta) -> Json:
        return self._object([self._choice(delta)])

    def closing(self, usage: Usage) -> Json:
        return self._object([]) | {"usage": usage_json(usage)}

    def _object(self, choices: list[Json]) -> Json:
        return self.head.envelope("text_completion", choices)

    def _choice(self, delta: Delta) -> Json:
        return self.head.choice(delta, {"text": delta.text}, completion_logprobs)


@dataclass(frozen=True)
class ChatAnswer:
    """`chat.completion`, and `chat.completion.chunk` whose first one carries the role."""

    head: AnswerHead

    def body(self, choices: Sequence[Delta], usage: Usage) -> Json:
        written = [
            self.head.choice(
                delta,
                {"message": {"role": "assistant", "content": delta.text, "refusal": None}},
                chat_logprobs,
            )
            for delta in choices
        ]
        return self.head.envelope("chat.completion", written) | {"usage": usage_json(usage)}

    def opening(self, num_choices: int) -> list[Json]:
        return [
            self._chunk(Delta(index, "", ()), {"role": "assistant", "content": ""})
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
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
