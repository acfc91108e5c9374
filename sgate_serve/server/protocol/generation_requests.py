"""The request bodies of completions and chat completions, with every supported parameter.

The field descriptions are shown at /docs and in error messages.
"""

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.chat_messages import Message, ToolBody
from sgate_serve.server.protocol.strict_body import (
    MAX_PROMPTS,
    PROMPTS_EXPECTED,
    Prompts,
    StrictModel,
    TokenIds,
    as_list,
)
from sgate_serve.server.protocol.structured_outputs import StructuredBody
from sgate_serve.server.protocol.vllm_parameters import MAX_LOGPROBS, VllmParameters

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_CHOICES = 128
MAX_LOOKED_UP = 32

# Every new token is compared with the beginnings of all stop strings.
MAX_STOP_CHARACTERS = 1024
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
# JSON spells the keys of an object as strings.
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(StrictModel):
    """Options of a stream; `continuous_usage_stats` is vLLM's, for usage in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(StructuredBody, VllmParameters):
    """The parameters that completions and chat completions share."""

    n: int = Field(
        1, ge=1, le=MAX_CHOICES, description=f"choices for each prompt, from 1 to {MAX_CHOICES}"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="a number from 0 (greedy) to 2")
    top_p: float = Field(1.0, gt=0, le=1, description="a number above 0, at most 1")
    top_k: int = Field(0, ge=-1, description="how many tokens to choose from; -1 or 0 for all")
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a number from 0 to 1, the least probability relative to the likeliest token's",
    )
    min_tokens: int = Field(0, ge=0, description="a whole number, the fewest tokens to generate")
    stop_token_ids: TokenIds = Field(
        default_factory=list,
        max_length=MAX_STOP_TOKENS,
        description=f"a list of at most {MAX_STOP_TOKENS} token ids that end the text, unseen",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        le=100,
        description="a number above 0; above 1 it discourages tokens of the prompt and the text",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2, for tokens already in the text"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2, for each time the text has a token"
    )
    logit_bias: dict[TokenKey, Bias] = Field(
        default_factory=dict,
        max_length=MAX_BIASES,
        description=f"an object of at most {MAX_BIASES} token ids and numbers from -100 to 100",
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="a 64-bit integer that makes sampling reproducible"
    )
    stop: (
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]
    ) = Field(
        default_factory=list,
        description=f"a string of 1 to {MAX_STOP_CHARACTERS} characters or a list of at most "
        f"{MAX_STOP_STRINGS} of them",
    )
    stream: bool = Field(False, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description="an object with `include_usage`, together with `stream: true`"
    )
    ignore_eos: bool = Field(
        False, description="true or false; true generates on to max_tokens (as in vLLM)"
    )
    prompt_lookup_num_tokens: int = Field(
        0,
        ge=0,
        le=MAX_LOOKED_UP,
        description=f"a whole number from 0 to {MAX_LOOKED_UP}, how many tokens may be looked up "
        "in the request's own text at a time",
    )
    return_token_ids: bool = Field(
        False,
        description="true or false; true adds `token_ids` to each choice, and `prompt_token_ids` "
        "(as in vLLM)",
    )

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "`stream_options` is only for `stream: true`; leave it out", param="stream_options"
            )
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "`prompt_logprobs` is not for `stream: true`; leave one of them out",
                param="prompt_logprobs",
            )
        return self

    @property
    @abstractmethod
    def num_choices(self) -> int:
        """How many choices the whole call has."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions. `max_tokens` is 16 by default, as at OpenAI."""

    prompt: Prompts = Field(description=PROMPTS_EXPECTED)
    max_tokens: int = Field(
        16, ge=0, description="a positive integer, or 0 together with `echo: true`"
    )
    echo: bool = Field(False, description="true or false; true shows the prompt before the text")
    logprobs: int | None = Field(
        None,
        ge=-1,
        le=MAX_LOGPROBS,
        description=f"a whole number up to {MAX_LOGPROBS}: shows the log-probability of each "
        "token, also of an echoed prompt, and this many likeliest tokens, or all for -1",
    )

    @model_validator(mode="after")
    def _check_max_tokens(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "`max_tokens` 0 generates nothing, so it is only for `echo: true`; send at least 1",
                param="max_tokens",
            )
        if self.max_tokens == 0 and self.logprob_token_ids:
            raise RequestError(
                "`logprob_token_ids` is about new tokens, and `max_tokens` 0 generates none; leave "
                "it out",
                param="logprob_token_ids",
            )
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if self.num_choices == 0:
            raise RequestError(
                "`prompt` is an empty list; send at least one prompt", param="prompt"
            )
        if self.num_choices > MAX_PROMPTS:
            raise RequestError(
                f"`n` is {self.n} for each of {self.num_choices // self.n} prompts; at most "
                f"{MAX_PROMPTS} choices are allowed in one call",
                param="n",
            )
        return self

    @property
    def num_choices(self) -> int:
        """How many choices the whole call has."""
        return len(as_list(self.prompt)) * self.n

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show, -1 for all; None for no log-probabilities."""
        return self.logprobs


class ChatRequest(GenerationRequest, ToolBody):
    """The body of /v1/chat/completions; the default limit is the model's maximum length."""

    messages: list[Message] = Field(
        min_length=1,
        fail_fast=True,
        description="a list of messages with `role` and text `content`",
    )
    echo: bool = Field(
        False,
        description="true or false; true shows the last message before the text if its role is "
        "that of the answer",
    )
    max_tokens: int | None = Field(None, ge=1, description="a positive integer")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="a positive integer; the newer name of max_tokens"
    )
    logprobs: bool = Field(
        False, description="true or false; true shows the log-probability of each token"
    )
    top_logprobs: int = Field(
        0,
        ge=-1,
        le=MAX_LOGPROBS,
        description=f"a whole number up to {MAX_LOGPROBS}, together with `logprobs: true`: shows "
        "this many likeliest tokens at each position, or all for -1",
    )

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise RequestError(
                "`max_tokens` and `max_completion_tokens` are two names of one limit and differ; "
                "send one",
                param="max_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                "`top_logprobs` is only for `logprobs: true`; leave it out", param="top_logprobs"
            )
        return self

    @model_validator(mode="after")
    def _check_constraint(self) -> Self:
        if self.shown_tools and self.structured_outputs is not None:
            raise RequestError(
                "`structured_outputs` constrains the whole answer, which then calls no tools; send "
                "`response_format`, or `tool_choice: none`",
                param="structured_outputs",
            )
        return self

    @property
    def constrains_calls(self) -> bool:
        """Whether a grammar makes the calls of an answer valid."""
        is_strict = any(tool.function.strict for tool in self.shown_tools)
        has_format = bool(self.shown_tools) and self.grammar is not None
        return self.must_call or is_strict or has_format

    @property
    def num_choices(self) -> int:
        """How many choices the whole call has."""
        return self.n

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to show, -1 for all; None for no log-probabilities."""
        return self.top_logprobs if self.logprobs else None

    @property
    def answer_role(self) -> str:
        """The role of the answer: the assistant's, or that of a message that goes on."""
        return "assistant" if self.add_generation_prompt else self.messages[-1].role

    @property
    def echoed_text(self) -> str:
        """The text before the answer."""
        last = self.messages[-1]
        return last.text if self.echo and last.role == self.answer_role else ""

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens to generate, under either name."""
        return self.max_completion_tokens or self.max_tokens
