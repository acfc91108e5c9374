"""The messages of a conversation, and how the model's chat template shows them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.strict_body import StrictBody, StrictModel
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


def _check_role(role: str) -> str:
    if role in ("tool", "function"):
        raise ValueError("tools are not supported")
    return role


class Message(StrictModel):
    """One message, of text only; tool calls are not supported.

    The chat template gets any role, and any further fields.
    """

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=MAX_ROLE), AfterValidator(_check_role)]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    tool_calls: None = None
    tool_call_id: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """The content, the parts of which are joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    @property
    def variables(self) -> dict[str, Any]:
        """The message as the client sent it, for a chat template."""
        return self.model_dump(exclude_none=True)


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

    @property
    def options(self) -> ChatOptions:
        return ChatOptions(
            self.add_generation_prompt, self.continue_final_message, self.chat_template_kwargs
        )
