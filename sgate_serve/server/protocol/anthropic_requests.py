"""The bodies of /v1/messages, Anthropic's API, which is answered as a chat.

`cache_control` and citations are accepted and dropped: prompts are cached anyway.
"""

import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import cut
from sgate_serve.server.protocol.generation_requests import (
    MAX_STOP_STRINGS,
    ChatRequest,
    StopString,
)
from sgate_serve.server.protocol.strict_body import StrictBody, StrictModel
from sgate_serve.server.protocol.tools import FunctionName, JsonObject

logger = logging.getLogger(__name__)


class Block(StrictModel):
    """What all blocks may have."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = None


Text = str | Annotated[list[TextBlock], Field(fail_fast=True)]


class ToolUseBlock(Block):
    """A call of an earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject

    @property
    def call(self) -> dict[str, Any]:
        arguments = json.dumps(self.input, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class ToolResultBlock(Block):
    """The result of a call; chat templates know no `is_error`, so the text must say so."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text = ""
    is_error: bool = False

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": _parts(self.content)}


AnyBlock = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class AnthropicMessage(StrictModel):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[AnyBlock], Field(fail_fast=True)]

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        wrong = ToolUseBlock if self.role == "user" else ToolResultBlock
        if any(isinstance(block, wrong) for block in self.content):
            raise ValueError("calls are the assistant's, and their results the user's")
        return self

    @property
    def is_begun_answer(self) -> bool:
        """Whether this is the assistant's text, without calls."""
        has_calls = any(isinstance(block, ToolUseBlock) for block in self.content)
        return self.role == "assistant" and bool(self.content) and not has_calls

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat: results come before the text of the same turn."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        calls = [block.call for block in self.content if isinstance(block, ToolUseBlock)]
        found = [block.message for block in self.content if isinstance(block, ToolResultBlock)]
        if texts or calls or not found:
            own = {"role": self.role, "content": _parts(texts)}
            found.append({**own, "tool_calls": calls} if calls else own)
        return found


class AnthropicTool(StrictModel):
    """A function that the model may call."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def function(self) -> dict[str, Any]:
        """The tool of a chat."""
        own = {"name": self.name, "description": self.description, "strict": self.strict}
        return {"type": "function", "function": {**own, "parameters": self.input_schema}}


class ServerTool(StrictModel):
    """A tool that Anthropic runs itself, such as a search of the web; there are none here."""

    model_config = ConfigDict(extra="ignore")

    type: str


def _tool_type(tool: Any) -> str:
    own = tool.get("type", "custom") if isinstance(tool, dict) else "custom"
    return "custom" if own == "custom" else "server"


AnyTool = Annotated[
    Annotated[AnthropicTool, Tag("custom")] | Annotated[ServerTool, Tag("server")],
    Discriminator(_tool_type),
]


class AnthropicChoice(StrictModel):
    """Whether tools are called: not at all, as the model likes, any, or a certain one."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("`name` goes with the type tool, and with no other one")
        return self

    @property
    def tool_choice(self) -> Any:
        """The same in a chat."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class OutputFormat(StrictModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    content: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    format: OutputFormat | None = None

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The same in a chat."""
        if self.format is None:
            return None
        own = {"name": "output", "schema": self.format.content}
        return {"type": "json_schema", "json_schema": own}


class CountTokensRequest(StrictBody):
    """The body of /v1/messages/count_tokens: what the model reads."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True)] = Field(
        description="a list of messages with `role` and `content`, text or blocks"
    )
    system: Text | None = Field(None, description="a string, or a list of text blocks")
    tools: Annotated[list[AnyTool], Field(fail_fast=True)] = Field(
        default_factory=list, description="a list of objects with `name` and `input_schema`"
    )
    tool_choice: AnthropicChoice = Field(
        default_factory=lambda: AnthropicChoice(type="auto"),
        description="an object with `type`: auto, any, none, or tool together with `name`",
    )

    @property
    def functions(self) -> list[tuple[int, AnthropicTool]]:
        """The functions among the tools, with their places."""
        return [(at, tool) for at, tool in enumerate(self.tools) if isinstance(tool, AnthropicTool)]

    @property
    def chat_names(self) -> Mapping[str, str]:
        """The names of a chat's fields that errors may name → ours."""
        names = {
            "max_completion_tokens": "max_tokens",
            "stop": "stop_sequences",
            "response_format.json_schema.schema": "output_config.format.schema",
        }
        for number, (place, _) in enumerate(self.functions):
            own = f"tools.{number}.function"
            names |= {f"{own}.parameters": f"tools.{place}.input_schema", own: f"tools.{place}"}
        return names

    def as_chat(self) -> ChatRequest:
        """Return the same request as a chat; raise RequestError in the names of chats."""
        others = [tool.type for tool in self.tools if isinstance(tool, ServerTool)]
        if others:
            logger.info("tools of other types than custom are left out: %s", cut(repr(others)))
        return ChatRequest.model_validate(
            {name: value for name, value in self._chat().items() if value is not None}
        )

    def _chat(self) -> dict[str, Any]:
        system = [] if self.system is None else [_system(self.system)]
        own = [message for turn in self.messages for message in turn.messages]
        return {
            "model": self.model,
            "messages": [*system, *own],
            "tools": [tool.function for _, tool in self.functions],
            "tool_choice": self.tool_choice.tool_choice,
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            # The answer goes on with the text of a last message of the assistant.
            "add_generation_prompt": not self.messages[-1].is_begun_answer,
            "continue_final_message": self.messages[-1].is_begun_answer,
        }


class MessagesRequest(CountTokensRequest):
    """The body of /v1/messages."""

    max_tokens: int = Field(ge=1, description="a positive integer")
    stop_sequences: Annotated[
        list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)
    ] = Field(
        default_factory=list, description=f"a list of at most {MAX_STOP_STRINGS} strings that end"
    )
    output_config: OutputConfig = Field(
        default_factory=OutputConfig,
        description="an object with `format`, which has `type: json_schema` and `schema`",
    )
    temperature: float = Field(1.0, description="as in chats")
    top_p: float = Field(1.0, description="as in chats")
    top_k: int = Field(0, description="as in chats")
    stream: bool = Field(False, description="true or false")
    thread: dict[str, Any] | None = Field(None, description="absent, as nothing is stored")

    @model_validator(mode="after")
    def _check_stateless(self) -> Self:
        if self.thread is not None:
            raise RequestError(
                "`thread` needs stored messages, and this server stores none; leave it out, and "
                "send the conversation so far as `messages`",
                param="thread",
                code="thread_unsupported_request",  # on which Anthropic's SDK does so
            )
        return self

    def _chat(self) -> dict[str, Any]:
        return {
            **super()._chat(),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "response_format": self.output_config.response_format,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def _system(text: Text) -> dict[str, Any]:
    return {"role": "system", "content": _parts(text)}


def _parts(text: Text) -> str | list[dict[str, str]]:
    """Return text as a chat has it."""
    if isinstance(text, str):
        return text
    return [{"type": "text", "text": block.text} for block in text]
