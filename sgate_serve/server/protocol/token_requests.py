"""The request bodies of /tokenize and /detokenize, which are vLLM's."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.chat_messages import ConversationBody, Message
from sgate_serve.server.protocol.strict_body import StrictBody, TokenIds


class TokenizeRequest(ConversationBody):
    """The body of /tokenize: a prompt or a conversation."""

    prompt: str | None = Field(None, description="a string, or `messages` instead")
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        None,
        min_length=1,
        description="a list of messages, or `prompt` instead",
    )
    add_special_tokens: bool | None = Field(
        None,
        description="true or false; by default true for `prompt`, and false for `messages`, whose "
        "chat template writes them",
    )
    return_token_strs: bool = Field(
        False, description="true or false; true adds the name of each token"
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either `prompt` or `messages`", param="prompt")
        if self.tools and self.messages is None:
            raise RequestError("`tools` are for `messages`; leave them out", param="tools")
        return self


class ApplyTemplateRequest(ConversationBody):
    """The body of /apply-template, which is llama.cpp's."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(
        min_length=1, description="a list of messages"
    )


class DetokenizeRequest(StrictBody):
    """The body of /detokenize."""

    tokens: TokenIds = Field(description="a list of token ids")
