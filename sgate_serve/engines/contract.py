"""The contract between the server and an engine: requests of token ids in, token events out.

Engines handle neither text nor HTTP. `step` does one round of work for all running requests; the
caller drives it from one thread. Greedy tokens of a request are the same alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import RequestError

FinishReason = Literal["stop", "length", "abort"]


class GrammarState(Protocol):
    """How far one answer has come in its grammar, which is complete if nothing is allowed.

    `allowed` [vocab] are the tokens that may follow; with `may_end` the answer may also end here.
    """

    allowed: NDArray[np.bool_]
    may_end: bool

    def accept(self, token: int) -> None:
        """Add an allowed token; raise RequestError if the grammar cannot be followed further."""


class Grammar(Protocol):
    """What the text of an answer must be, compiled to the tokens of the model."""

    def start(self) -> GrammarState:
        """Return the state of a new answer."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; names, meanings and neutral values are vLLM's.

    Temperature 0 is greedy; `seed` makes a sampled run repeatable; `top_k` 0 keeps all tokens.
    `repetition_penalty` counts prompt and completion, the other two penalties only the completion.
    `logit_bias` holds pairs of a token id and the number added to its logit. Stop tokens are
    suppressed before `min_tokens` tokens. `logprobs` requests the log-probability of each new token
    and of that many most likely tokens, `prompt_logprobs` the same for the prompt; for new tokens,
    `logprob_token_ids` are shown instead of the most likely ones, if there are any. With
    `max_tokens` 0 only the prompt is processed. `allowed_token_ids`, sorted and unique, are the
    only tokens that may be chosen; of each of `bad_words`, which are token ids, the last never
    follows the others. Up to `drafted_tokens` at a time may be looked up in the request's own text,
    which is to save time and no more. A `grammar` allows stop tokens where the text may end, and
    ends the request where nothing else may follow, even before `min_tokens`.
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
    logprob_token_ids: tuple[int, ...] = ()
    drafted_tokens: int = 0
    grammar: Grammar | None = None
    allowed_token_ids: NDArray[np.int64] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt to continue; the caller chooses `request_id`, unique while the request runs."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class TokenLogprobs:
    """A token, its log-probability, and the most likely tokens at its position.

    `top` holds (token id, log-probability), most likely first, or instead those of
    `logprob_token_ids` and of the token itself; `rank` is how many tokens are at least as likely as
    this one. The first token of a prompt has `logprob` and `rank` None, since nothing predicts it.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One step of one request: a new token, its end, or both.

    `token` is None if the request ended without a new visible token; a stop token, which is never
    one, is the `stop_token`; `logprobs` are of either. `finish_reason` is None while the request
    continues. The first event of a request carries the log-probabilities of its prompt if they were
    requested. `num_cached` tokens of the prompt were in the KV cache before, and `admitted` is when
    the request got its slot, on the clock of `time.perf_counter`; None if the engine does not say.
    A request that cannot go on ends with `abort` and the `error`.
    """

    request_id: str
    token: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached: int = 0
    error: RequestError | None = None
    stop_token: int | None = None
    admitted: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for /metrics: running and queued requests, and the fraction of KV cache in use.

    `prefix_queries` and `prefix_hits` count the prompt tokens so far that were looked up, and that
    were found, in the KV cache; the next three the drafts, their tokens, and those that were right.
    `preemptions` counts how often a request gave back its slot before its end.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0


class Engine(Protocol):
    """A loaded model that continues prompts. Not thread-safe: one thread drives it."""

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError if it can never run (too long, id out of range)."""

    def abort(self, request_id: str) -> None:
        """Drop a running or waiting request and free its slot; unknown ids are ignored."""

    def step(self) -> Sequence[TokenEvent]:
        """Admit waiting requests, then advance running ones.

        A request gets one token at most, or several that were drafted, each in an event of its own.
        """

    def has_work(self) -> bool:
        """Return whether a request is running or waiting."""

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class PoolingRequest:
    """One text to classify or embed; `token_types` are BERT's segment ids, None for all zero."""

    request_id: str
    prompt: tuple[int, ...]
    token_types: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PooledOutput:
    """The answer to a `PoolingRequest`: logits [labels], or an embedding [width]."""

    request_id: str
    values: NDArray[np.float32]


class PoolingEngine(Protocol):
    """A loaded classifier or embedding model. Not thread-safe: one thread drives it.

    The values of a request are the same in any batch.
    """

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: PoolingRequest) -> None:
        """Queue a request; raise RequestError if it can never run (too long, id out of range)."""

    def abort(self, request_id: str) -> None:
        """Drop a waiting request; unknown ids are ignored."""

    def step(self) -> Sequence[PooledOutput]:
        """Run one batch of waiting requests, oldest first, and return their answers."""

    def has_work(self) -> bool:
        """Return whether a request is waiting."""

    def stats(self) -> EngineStats: ...
