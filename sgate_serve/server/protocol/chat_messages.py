"""The messages of a conversation, and how the model's chat template shows them."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import excerpt
from sgate_serve.server.protocol.strict_body import StrictBody, StrictModel
from sgate_serve.server.protocol.tools import (
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
    Tools,
    check_names,
)
from sgate_serve.text.chat_template import ChatOptions

# Variables that have a field of their own, or none here, and what transformers takes as arguments.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "tokenize",
        "tools",
    }
)

# The answer may have the last message's role, in each of its choices.
MAX_ROLE = 64


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class Message(StrictModel):
    """One message, of text, tool calls (of the assistant), or the result of one (role `tool`).

    The chat template gets any role, and any further fields.
    """

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=MAX_ROLE)]
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, validate_default=True
    )
    name: str | None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """The content, the parts of which are joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())

    @field_validator("tool_calls", "tool_call_id")
    @classmethod
    def _check_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = "assistant" if info.field_name == "tool_calls" else "tool"
        if value and info.data.get("role", role) != role:
            raise PydanticCustomError(
                "role", "Only messages of the role {owner} have it", {"owner": role}
            )
        return value

    @field_validator("content")
    @classmethod
    def _check_content(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "Field required")
        return value

    @property
    def variables(self) -> dict[str, Any]:
        """The message as the client sent it, for a chat template, and never without content."""
        own = self.model_dump(exclude_none=True, exclude={"tool_calls"})
        shown = {"role": self.role, "content": "", **own}
        if self.tool_calls:
            shown["tool_calls"] = [call.variables for call in self.tool_calls]
        return shown


class ConversationBody(StrictBody):
    """The fields of a body with `messages` that are for the chat template, as in vLLM."""

    add_generation_prompt: bool = Field(
        True, description="true or false; false does not begin the assistant's turn"
    )
    continue_final_message: bool = Field(
        False,
        description="true or false; true goes on with the last message, together with "
        "`add_generation_prompt: false`",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="an object of further variables for the chat template, such as "
        "`enable_thinking`",
    )
    tools: Tools | None = Field(
        None, description="a list of objects with `type: function` and `function`"
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "`continue_final_message` goes on with a message, and `add_generation_prompt` "
                "begins one; send `add_generation_prompt: false` with it",
                param="continue_final_message",
            )
        reserved = sorted(RESERVED & self.chat_template_kwargs.keys())
        if reserved:
            raise RequestError(
                f"`chat_template_kwargs.{reserved[0]}` is no variable of its own; leave it out, or "
                "use the field of that name",
                param="chat_template_kwargs",
            )
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if self.tools:
            check_names(self.tools)
        return self

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the model sees."""
        return self.tools or []

    @property
    def options(self) -> ChatOptions:
        return ChatOptions(
            self.add_generation_prompt,
            self.continue_final_message,
            self.chat_template_kwargs,
            [tool.variables for tool in self.shown_tools] or None,
        )


class ToolBody(ConversationBody):
    """The fields of a body that say whether the model calls tools."""

    tool_choice: ToolChoice = Field(
        "auto",
        description="none, auto, required, or an object with `type: function` and `function`, "
        "which has the `name` of the tool to call",
    )
    parallel_tool_calls: bool = Field(
        True, description="true or false; false allows only one call in an answer"
    )

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        choice = self.tool_choice
        if self.must_call and not self.tools:
            raise RequestError(
                "`tool_choice` asks for a call, but there are no `tools`; send some",
                param="tool_choice",
            )
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise RequestError(
                f"`tool_choice` names {excerpt(choice.function.name)}, which is none of `tools`; "
                "name one of them",
                param="tool_choice",
            )
        return self

    @property
    def must_call(self) -> bool:
        """Whether the answer is calls and nothing else."""
        return self.tool_choice not in ("none", "auto")

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the model sees: none if it may not call any."""
        return [] if self.tool_choice == "none" else self.tools or []
