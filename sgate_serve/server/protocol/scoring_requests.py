"""The request bodies of /score and /rerank, which are vLLM's (and Jina's and Cohere's)."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.strict_body import MAX_PROMPTS
from sgate_serve.server.protocol.text_body import EncoderBody

Texts = str | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
TEXTS_EXPECTED = f"a string or a list of at most {MAX_PROMPTS} strings"
# Names of the first texts → those of the second ones.
SIDES: Mapping[str, tuple[str, ...]] = {
    "queries": ("documents", "items"),
    "text_1": ("text_2",),
    "data_1": ("data_2",),
}


class ScoringBody(EncoderBody):
    """The parameters that both share."""

    max_tokens_per_query: int = Field(
        0, ge=0, description="the most tokens to read of a query; 0 for all"
    )
    max_tokens_per_doc: int = Field(
        0, ge=0, description="the most tokens to read of a document; 0 for all"
    )

    @property
    @abstractmethod
    def sides(self) -> dict[str, list[str]]:
        """The first texts and the second ones, by the names of their fields."""

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """The first texts, one or as many as the second ones, and these."""
        first, second = self.sides.values()
        return first, second

    @property
    def num_pairs(self) -> int:
        return len(self.texts[1])

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        (name, first), (other, second) = self.sides.items()
        for param, texts in ((name, first), (other, second)):
            if not texts:
                raise RequestError(f"`{param}` is an empty list; send at least one", param=param)
        if len(first) not in (1, len(second)):
            raise RequestError(
                f"`{name}` has {len(first)} texts and `{other}` has {len(second)}; send one text "
                "as the first, or as many on both sides",
                param=name,
            )
        return self


class ScoreRequest(ScoringBody):
    """The body of /score: pairs of texts, under one of the names that vLLM has for their sides."""

    text_1: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, with `text_2`")
    text_2: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, with `text_1`")
    queries: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, instead of `text_1`")
    documents: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, with `queries`")
    items: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, with `queries`")
    data_1: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, instead of `text_1`")
    data_2: Texts | None = Field(None, description=f"{TEXTS_EXPECTED}, with `data_1`")

    @property
    def sides(self) -> dict[str, list[str]]:
        """The two lists that were sent; raises RequestError for any other fields than a pair."""
        names = (*SIDES, *(name for others in SIDES.values() for name in others))
        values = {name: getattr(self, name) for name in names}
        given = {name: _as_list(own) for name, own in values.items() if own is not None}
        match [*given]:
            case [first, second] if second in SIDES.get(first, ()):
                return given
        found = " and ".join(f"`{name}`" for name in given) or "none of them"
        raise RequestError(
            "send `text_1` and `text_2`, or `queries` and `documents`; the body has " + found,
            param=next(iter(given), "text_1"),
        )


class RerankRequest(ScoringBody):
    """The body of /rerank: documents to be put in the order of their relevance for a query."""

    query: str = Field(description="a string")
    documents: Texts = Field(description=TEXTS_EXPECTED)
    top_n: int = Field(0, ge=0, description="how many documents to return; 0 for all")
    return_documents: bool = Field(
        True, description="true or false; false returns indices without texts"
    )

    @property
    def sides(self) -> dict[str, list[str]]:
        return {"query": [self.query], "documents": _as_list(self.documents)}


def _as_list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
