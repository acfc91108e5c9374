"""A request that a slot engine runs: its tokens so far, and how many of them are cached."""

from dataclasses import dataclass, field

import numpy as np

from sgate_serve.engines.contract import FinishReason, Request, TokenLogprobs
from sgate_serve.engines.prefix_cache import Ids
from sgate_serve.engines.sampling import Sampler


@dataclass(eq=False)
class Sequence:
    """A request with its tokens so far, prompt first, and the number of them in the KV cache.

    `prompt` is an array to compare with; `limit` is how many tokens are generated at most.
    """

    request: Request
    sampler: Sampler
    tokens: list[int]
    prompt: Ids
    limit: int
    slot: int = -1
    num_cached: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    # Of the prompt, how many tokens the KV cache held when the request was admitted first.
    num_shared: int = 0
    # When it was admitted first, on the clock of time.perf_counter.
    admitted: float | None = None

    @classmethod
    def of(cls, request: Request, max_model_len: int) -> "Sequence":
        sampler = Sampler.start(request.sampling, request.prompt)
        tokens, prompt = list(request.prompt), np.array(request.prompt, np.int64)
        limit = min(request.sampling.max_tokens, max_model_len - len(prompt))
        return cls(request, sampler, tokens, prompt, limit)

    def append(self, token: int) -> FinishReason | None:
        """Add a new token; return why the request ends with it, None if it goes on.

        A grammar that is complete counts for more than the limit, as the answer is whole. Raises
        RequestError if the grammar cannot be followed further.
        """
        self.tokens.append(token)
        grammar = self.sampler.grammar
        if grammar is not None:
            grammar.accept(token)
            if not grammar.allowed.any():
                return "stop"
        return "length" if self.num_generated >= self.limit else None

    @property
    def num_left(self) -> int:
        """The number of tokens that are not in the KV cache yet."""
        return len(self.tokens) - self.num_cached

    @property
    def cached_prompt(self) -> Ids:
        """The part of the prompt that is in the KV cache."""
        return self.prompt[: self.num_cached]

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def is_decoding(self) -> bool:
        return self.num_generated > 0 and self.num_left == 1

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether the next tokens are of a prompt whose log-probabilities are still to be sent."""
        return self.request.sampling.prompt_logprobs is not None and not self.num_generated
