"""The body and the JSON of /v2/embed, which are Cohere's, as in vLLM; of texts only."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import excerpt
from sgate_serve.server.protocol.pooling_responses import Json, Vector, base64_text, numbers
from sgate_serve.server.protocol.strict_body import MAX_PROMPTS, StrictBody
from sgate_serve.text.truncation import Side, Truncation

# Where a text is cut that is too long.
SIDES: Mapping[str, Side] = {"START": "left", "END": "right"}

EmbeddingType = Literal["float", "binary", "ubinary", "base64"]


class CohereEmbedRequest(StrictBody):
    """The body of /v2/embed."""

    texts: Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)] = Field(
        min_length=1, description=f"a list of at most {MAX_PROMPTS} strings"
    )
    input_type: str | None = Field(
        None,
        description="the name of one of the model's prompts, to be put before each text; by "
        "default its default prompt",
    )
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1, fail_fast=True)] = Field(
        default=["float"],
        max_length=4,
        description="a list of float, base64 (little-endian float32), binary and ubinary (a bit "
        "for each number, in signed and unsigned bytes)",
    )
    output_dimension: int | None = Field(
        None,
        ge=1,
        description="the width of the model's embeddings, or one of those that it was trained for",
    )
    truncate: Literal["NONE", "START", "END"] = Field(
        "END", description="START or END to cut texts that are too long, or NONE to refuse them"
    )
    max_tokens: int | None = Field(
        None, ge=1, description="the most tokens to read of each text, by default as many as fit"
    )

    def truncation(self, limit: int) -> Truncation | None:
        """Return how to cut the texts for a model that reads `limit` tokens of each, if at all."""
        if self.max_tokens is not None and self.max_tokens > limit:
            raise RequestError(
                f"`max_tokens` is {self.max_tokens}, but at most {limit} tokens fit; send at most "
                "that, or leave it out",
                param="max_tokens",
            )
        if self.truncate == "NONE":
            return None
        return Truncation(self.max_tokens or limit, SIDES[self.truncate])

    def prompt(self, default: str, prompts: Mapping[str, str]) -> str:
        """Return what to put before each text."""
        if self.input_type is None:
            return default
        if self.input_type not in prompts:
            known = f"one of {', '.join(sorted(prompts))}, or " if prompts else ""
            found = "no prompt of that name" if prompts else "no prompts"
            raise RequestError(
                f"`input_type` is {excerpt(self.input_type)}, but this model has {found}; send "
                f"{known}none",
                param="input_type",
            )
        return prompts[self.input_type]


def embeddings_by_type_json(
    vectors: Sequence[Vector], body: CohereEmbedRequest, num_tokens: int
) -> Json:
    """Return the embeddings in each of the types; raise RequestError for bits that fill no byte."""
    width = len(vectors[0])
    if width % 8 and {"binary", "ubinary"} & set(body.embedding_types):
        raise RequestError(
            f"`embedding_types` has bits, but the embeddings have {width} numbers, no multiple of "
            "8; send float or base64",
            param="embedding_types",
        )
    written = {kind: [WRITERS[kind](vector) for vector in vectors] for kind in body.embedding_types}
    units = {"input_tokens": num_tokens, "image_tokens": 0}
    return {
        "embeddings": written,
        "texts": body.texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": units},
        "response_type": "embeddings_by_type",
    }


def _bits(vector: Vector, offset: int) -> list[int]:
    """Return a bit for each number, 1 from 0 on: bytes from `offset` on, the highest bit first."""
    return [int(byte) + offset for byte in np.packbits(vector >= 0)]


WRITERS: Mapping[EmbeddingType, Callable[[Vector], Any]] = {
    "float": numbers,
    "base64": base64_text,
    "binary": partial(_bits, offset=-128),
    "ubinary": partial(_bits, offset=0),
}
