"""Parameters of vLLM that completions and chat completions share, besides those of sampling."""

from abc import abstractmethod
from typing import Annotated, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.strict_body import TokenIds
from sgate_serve.server.protocol.text_body import TextBody

MAX_LOGPROBS = 20
MAX_LOGPROB_TOKENS = 128
MAX_BAD_WORDS = 256
MAX_WORD_CHARACTERS = 256

BadWord = Annotated[str, Field(min_length=1, max_length=MAX_WORD_CHARACTERS)]


class VllmParameters(TextBody):
    """How a prompt is read, which tokens may be chosen, and how they are shown."""

    add_special_tokens: bool | None = Field(
        None,
        description="true or false; by default true for `prompt`, and false for `messages`, whose "
        "chat template writes them",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=-1,
        le=MAX_LOGPROBS,
        description=f"a whole number up to {MAX_LOGPROBS}: shows each prompt token's "
        "log-probability and rank, and this many likeliest tokens, or all for -1",
    )
    logprob_token_ids: TokenIds = Field(
        default_factory=list,
        max_length=MAX_LOGPROB_TOKENS,
        description=f"a list of at most {MAX_LOGPROB_TOKENS} token ids, which `logprobs` shows "
        "instead of the likeliest tokens",
    )
    return_tokens_as_token_ids: bool = Field(
        False,
        description="true or false; true shows tokens as `token_id:N`, together with `logprobs`",
    )
    skip_special_tokens: bool = Field(
        True, description="true or false; false shows special tokens in the text"
    )
    include_stop_str_in_output: bool = Field(
        False, description="true or false; true shows the stop string that ends the text"
    )
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS, fail_fast=True)] = Field(
        default_factory=list,
        description=f"a list of at most {MAX_BAD_WORDS} texts of 1 to {MAX_WORD_CHARACTERS} "
        "characters that may not be generated",
    )
    allowed_token_ids: TokenIds | None = Field(
        None, min_length=1, description="a list of the only token ids that may be generated"
    )

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show, -1 for all; None for no log-probabilities."""

    @model_validator(mode="after")
    def _check_shown_tokens(self) -> Self:
        for name in ("return_tokens_as_token_ids", "logprob_token_ids"):
            if getattr(self, name) and self.num_logprobs is None:
                raise RequestError(f"`{name}` is only for `logprobs`; leave it out", param=name)
        return self
