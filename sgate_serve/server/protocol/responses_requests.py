"""The body of /v1/responses, which is answered as a chat.

Nothing is stored: a client sends the whole conversation as `input`, also what was answered before.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import cut
from sgate_serve.server.protocol.generation_requests import ChatRequest
from sgate_serve.server.protocol.strict_body import StrictBody, StrictModel
from sgate_serve.server.protocol.tools import ArgumentsText, Function
from sgate_serve.server.protocol.vllm_parameters import MAX_LOGPROBS

logger = logging.getLogger(__name__)

# What is the same in a chat, where it is checked.
PASSED_ON = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "chat_template_kwargs",
    "parallel_tool_calls",
    "top_logprobs",
)
# What more a response may hold; there is never any reasoning here.
OUTPUT_LOGPROBS = "message.output_text.logprobs"
Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class TextItem(StrictModel):
    """A part of a message; an answer's parts come back with their annotations."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


Content = str | Annotated[list[TextItem], Field(fail_fast=True)]


class Item(StrictModel):
    """What all items of a conversation may have; both are of an earlier answer."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    @property
    def message(self) -> dict[str, Any]:
        return {"role": self.role, "content": _joined(self.content)}


class CallItem(Item):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: ArgumentsText

    @property
    def call(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class ResultItem(Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.call_id, "content": _joined(self.output)}


def _item_type(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else "message"


AnyItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_item_type),
]


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]


class OtherTool(StrictModel):
    """A tool that OpenAI runs itself, such as a search of the web; there are none here."""

    model_config = ConfigDict(extra="ignore")

    type: str


def _tool_type(tool: Any) -> str:
    is_object = isinstance(tool, dict) and "type" in tool
    return "function" if not is_object or tool["type"] == "function" else "other"


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")],
    Discriminator(_tool_type),
]


class NamedTool(StrictModel):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(StrictModel):
    """Text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    content: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @property
    def response_format(self) -> dict[str, Any]:
        """The same in a chat."""
        if self.type != "json_schema":
            return {"type": self.type}
        own = {"name": self.name or "", "schema": self.content}
        return {"type": self.type, "json_schema": _given(own)}


class TextConfig(StrictModel):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(StrictBody):
    """The body of /v1/responses."""

    input: str | Annotated[list[AnyItem], Field(min_length=1, fail_fast=True)] = Field(
        description="a string, or a list of messages, function calls and their outputs"
    )
    instructions: str | None = Field(None, description="a string, put before `input` as system")
    max_output_tokens: int | None = Field(None, ge=1, description="a positive integer")
    tools: Annotated[list[AnyTool], Field(fail_fast=True)] = Field(
        default_factory=list, description="a list of functions, each with `type: function`"
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool = Field(
        "auto", description="none, auto, required, or an object with `type: function` and `name`"
    )
    parallel_tool_calls: bool = Field(True, description="true or false")
    text: TextConfig = Field(
        default_factory=TextConfig, description="an object with `format`, as of `response_format`"
    )
    temperature: float = Field(1.0, description="as in chats")
    top_p: float = Field(1.0, description="as in chats")
    top_k: int = Field(0, description="as in chats")
    min_p: float = Field(0.0, description="as in chats")
    presence_penalty: float = Field(0.0, description="as in chats")
    frequency_penalty: float = Field(0.0, description="as in chats")
    repetition_penalty: float = Field(1.0, description="as in chats")
    seed: int | None = Field(None, description="as in chats")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="as in chats: variables of the chat template"
    )
    include: Annotated[list[Included], Field(fail_fast=True)] = Field(
        default_factory=list,
        max_length=len(get_args(Included)),
        description=f"a list with `{OUTPUT_LOGPROBS}`, for the log-probability of each token",
    )
    top_logprobs: int = Field(
        0,
        ge=0,
        le=MAX_LOGPROBS,
        description=f"a whole number up to {MAX_LOGPROBS}, together with `{OUTPUT_LOGPROBS}` in "
        "`include`: how many of the likeliest tokens to show at each position",
    )
    metadata: dict[str, str] = Field(
        default_factory=dict, description="an object of strings, which the response repeats"
    )
    store: bool = Field(True, description="true or false; nothing is stored in either case")
    stream: bool = Field(False, description="true or false")
    previous_response_id: str | None = Field(None, description="absent, as nothing is stored")

    @model_validator(mode="after")
    def _check_stateless(self) -> Self:
        if self.previous_response_id is not None:
            raise RequestError(
                "`previous_response_id` needs stored responses, and this server stores none; send "
                "the conversation so far as `input`",
                param="previous_response_id",
            )
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.shows_logprobs:
            raise RequestError(
                f"`top_logprobs` is only for `include: [{OUTPUT_LOGPROBS}]`; leave it out",
                param="top_logprobs",
            )
        if self.shows_logprobs and self.functions and self.tool_choice != "none":
            raise RequestError(
                f"`{OUTPUT_LOGPROBS}` is not for answers that may call `tools`; leave one of them "
                "out, or send `tool_choice: none`",
                param="include",
            )
        return self

    @property
    def shows_logprobs(self) -> bool:
        """Whether texts come with the log-probabilities of their tokens."""
        return OUTPUT_LOGPROBS in self.include

    @property
    def functions(self) -> list[tuple[int, FunctionTool]]:
        """The functions among the tools, with their places."""
        return [(at, tool) for at, tool in enumerate(self.tools) if isinstance(tool, FunctionTool)]

    @property
    def chat_names(self) -> Mapping[str, str]:
        """The names of a chat's fields that errors may name → ours."""
        return {
            "messages": "input",
            "max_completion_tokens": "max_output_tokens",
            "max_tokens": "max_output_tokens",
            "response_format.json_schema.schema": "text.format.schema",
            "response_format": "text.format",
            **{
                f"tools.{at}.function": f"tools.{own}" for at, (own, _) in enumerate(self.functions)
            },
        }

    def as_chat(self) -> ChatRequest:
        """Return the same request as a chat; raise RequestError in the names of chats."""
        others = [tool.type for tool in self.tools if not isinstance(tool, FunctionTool)]
        if others:
            logger.info("tools of other types than function are left out: %s", cut(repr(others)))
        choice: Any = self.tool_choice
        if isinstance(choice, NamedTool):
            choice = {"type": "function", "function": {"name": choice.name}}
        own = self.text.format
        chat = {name: getattr(self, name) for name in PASSED_ON}
        chat |= {
            "messages": self._messages(),
            "tools": [_chat_tool(tool) for _, tool in self.functions],
            "tool_choice": choice,
            "response_format": None if own is None else own.response_format,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.shows_logprobs,
        }
        return ChatRequest.model_validate(_given(chat))

    def _messages(self) -> list[dict[str, Any]]:
        """Return the messages of a chat; calls belong to the answer that they come after."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if not isinstance(item, CallItem):
                messages.append(item.message)
                continue
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant"})
            messages[-1].setdefault("tool_calls", []).append(item.call)
        return messages


def _joined(content: str | list[TextItem]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part.text} for part in content]


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": tool.type, "function": tool.model_dump(exclude_unset=True, exclude={"type"})}


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
