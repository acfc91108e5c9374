"""The request bodies of embeddings (OpenAI's fields) and classification (vLLM's)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.chat_messages import ConversationBody, Message
from sgate_serve.server.protocol.strict_body import (
    PROMPTS_EXPECTED,
    Prompts,
    TokenIds,
    as_list,
)
from sgate_serve.server.protocol.text_body import EncoderBody


class PoolingBody(EncoderBody, ConversationBody):
    """The parameters that both share: texts, or one conversation."""

    input: Prompts | None = Field(None, description=f"{PROMPTS_EXPECTED}, or `messages` instead")
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="a list of messages, or `input` instead"
    )
    add_generation_prompt: bool = Field(
        False, description="true or false; true begins the assistant's turn"
    )
    add_special_tokens: bool | None = Field(
        None,
        description="true or false; by default true for `input`, and false for `messages`, whose "
        "chat template writes them",
    )

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.input == []:
            raise RequestError("`input` is an empty list; send at least one text", param="input")
        if (self.input is None) == (self.messages is None):
            raise RequestError("send either `input` or `messages`", param="input")
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if self.messages is None and getattr(self, name):
                raise RequestError(f"`{name}` is only for `messages`; leave it out", param=name)
        return self

    @property
    def adds_special_tokens(self) -> bool:
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens

    @property
    def num_inputs(self) -> int:
        return 1 if self.input is None else len(self._texts)

    @property
    def inputs(self) -> list[tuple[str | TokenIds, str | None]]:
        """The texts of `input`, each with the second text of its pair or None."""
        return [(text, None) for text in self._texts]

    @property
    def _texts(self) -> list[str | TokenIds]:
        return [] if self.input is None else as_list(self.input)


class EmbeddingRequest(PoolingBody):
    """The body of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float, or base64 for the bytes of the numbers"
    )
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="float32, float16 or bfloat16, together with `encoding_format` base64"
    )
    endianness: Literal["native", "little", "big"] | None = Field(
        None, description="little, big or native, together with `encoding_format` base64"
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="the width of the model's embeddings, or one of those that it was trained for",
    )

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        for name in ("embed_dtype", "endianness"):
            if getattr(self, name) is not None and self.encoding_format == "float":
                raise RequestError(
                    f"`{name}` is only for `encoding_format` base64; leave it out", param=name
                )
        return self


class ClassifyRequest(PoolingBody):
    """The body of /classify; `text_pair` is the second text of each pair."""

    text_pair: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="a string if `input` is one, or a list of as many strings as `input` has"
    )

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.text_pair is None:
            return self
        is_text = all(isinstance(text, str) for text in self._texts)
        is_one = isinstance(self.input, str)
        if (
            self.input is None
            or not is_text
            or is_one != isinstance(self.text_pair, str)
            or len(self._texts) != len(self._pairs)
        ):
            raise RequestError(
                "`text_pair` does not match `input`; send two strings, or two lists of strings of "
                "the same length",
                param="text_pair",
            )
        return self

    @property
    def _pairs(self) -> list[str]:
        return [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair or []

    @property
    def inputs(self) -> list[tuple[str | TokenIds, str | None]]:
        """The texts, each with the second text of its pair or None."""
        if self.text_pair is None:
            return super().inputs
        return [*zip(self._texts, self._pairs, strict=True)]
