"""The request bodies of embeddings (OpenAI's fields) and classification (vLLM's)."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.encoder_body import EncoderBody
from sgate_serve.server.protocol.strict_body import (
    PROMPTS_EXPECTED,
    Prompts,
    TokenIds,
    as_list,
)


class PoolingBody(EncoderBody):
    """The parameters that both share."""

    input: Prompts = Field(description=PROMPTS_EXPECTED)

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: Prompts) -> Prompts:
        if value == []:
            raise RequestError("`input` is an empty list; send at least one text", param="input")
        return value

    @property
    def inputs(self) -> list[tuple[str | TokenIds, str | None]]:
        """The texts, each with the second text of its pair or None."""
        return [(text, None) for text in as_list(self.input)]


class EmbeddingRequest(PoolingBody):
    """The body of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float, or base64 for little-endian float32"
    )
    dimensions: int | None = Field(
        None, ge=1, description="the width of the model's embeddings; no other is supported"
    )


class ClassifyRequest(PoolingBody):
    """The body of /classify; `text_pair` is the second text of each pair."""

    text_pair: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="a string if `input` is one, or a list of as many strings as `input` has"
    )

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.text_pair is None:
            return self
        texts = as_list(self.input)
        is_text = all(isinstance(text, str) for text in texts)
        is_one = isinstance(self.input, str)
        if (
            not is_text
            or is_one != isinstance(self.text_pair, str)
            or len(texts) != len(self._pairs)
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
        return [*zip(as_list(self.input), self._pairs, strict=True)]
