"""What every engine promises: requests of token ids in, token events out.

An engine knows no text, no HTTP and no files of the converters. `step` does one round of work for
all running requests; the caller drives it from one thread. Greedy tokens of a request are the same
alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; names, meanings and neutral values are vLLM's.

    Temperature 0 is greedy; `seed` makes a sampled run repeatable. `top_k` 0 keeps all tokens.
    `repetition_penalty` counts the prompt and what was generated, the other two only the latter.
    `logit_bias` holds (token id, what is added to its logit). No stop token comes before
    `min_tokens` tokens. `logprobs` asks for the score of each new token and of so many likeliest
    ones, `prompt_logprobs` for those of the prompt; `max_tokens` 0 only reads the prompt.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """One prompt to continue; `request_id` is the caller's and unique while it runs."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class TokenLogprobs:
    """A token, its log-probability, and (id, log-probability) of the likeliest there, best first.

    The first token of a prompt has None: nothing predicts it.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenEvent:
    """One step of one request: a new token, its end, or both.

    `token` is None when the request ended without a new visible token (a stop token is never
    shown). `finish_reason` is None while the request goes on. A request's first event carries the
    scores of its prompt, if they were asked for.
    """

    request_id: str
    token: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for /metrics: requests in slots, requests in the queue, share of KV in use."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float


class Engine(Protocol):
    """A loaded model that continues prompts. Not thread-safe: one thread drives it."""

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError if it can never run (too long, id out of range)."""

    def abort(self, request_id: str) -> None:
        """Drop a request, running or waiting, and free its slot; unknown ids are ignored."""

    def step(self) -> Sequence[TokenEvent]:
        """Advance every running request by at most one token; admit waiting ones first."""

    def has_work(self) -> bool:
        """Say whether a request is running or waiting."""

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class PoolingRequest:
    """One text to read with an encoder; `token_types` are BERT's segments, None for all zero."""

    request_id: str
    prompt: tuple[int, ...]
    token_types: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PooledOutput:
    """The one answer to a `PoolingRequest`: logits [labels], or an embedding [width]."""

    request_id: str
    values: NDArray[np.float32]


class PoolingEngine(Protocol):
    """A loaded encoder. Not thread-safe; the values of a request are the same in any batch."""

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: PoolingRequest) -> None:
        """Queue a request; raise RequestError if it can never run (too long, id out of range)."""

    def abort(self, request_id: str) -> None:
        """Drop a waiting request; unknown ids are ignored."""

    def step(self) -> Sequence[PooledOutput]:
        """Read one batch of waiting requests, oldest first, and return their answers."""

    def has_work(self) -> bool:
        """Say whether a request is waiting."""

    def stats(self) -> EngineStats: ...


class LoadedEncoder(PoolingEngine, Protocol):
    """An encoder as it is loaded by name: it can also be checked, and given back."""

    def read(
        self,
        prompts: Sequence[NDArray[np.int64]],
        types: Sequence[NDArray[np.int64] | None] | None = None,
    ) -> Sequence[NDArray[np.float32]]:
        """Read prompts in one call, past the queue: logits [labels] or last states [s, hidden].

        `types` are the segments of each prompt's tokens; None is the first for all.
        """

    def close(self) -> None:
        """Give back the model and its memory; nothing is called afterwards."""


class LoadedEngine(Engine, Protocol):
    """An engine as it is loaded by name: it can also be checked, and given back."""

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle engine."""

    def close(self) -> None:
        """Give back the model and its memory; nothing is called afterwards."""
