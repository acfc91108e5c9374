"""Checks of requests before they are queued: those that an engine can never run are rejected."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest, Request, SamplingParams
from sgate_serve.errors import RequestError


def check_request(request: Request, max_model_len: int, vocab_size: int) -> None:
    """Raise RequestError naming the field that makes a request impossible to run."""
    prompt = request.prompt
    check_tokens(prompt, vocab_size)
    if len(prompt) + min(1, request.sampling.max_tokens) > max_model_len:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; this server takes at most {max_model_len - 1} "
            f"(model length {max_model_len}, including one token for the answer)",
            param="prompt",
        )
    check_sampling(request.sampling, vocab_size)


def check_tokens(prompt: Sequence[int], vocab_size: int) -> None:
    """Raise RequestError for an empty prompt or a token outside the vocabulary."""
    if not prompt:
        raise RequestError("the prompt has no tokens; give at least one", param="prompt")
    for index, token in enumerate(prompt):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"prompt token {token} at index {index} is outside the vocabulary of "
                f"{vocab_size} tokens",
                param="prompt",
            )


def check_pooling_request(
    request: PoolingRequest, max_model_len: int, vocab_size: int, num_types: int
) -> None:
    """Raise RequestError naming the field that makes a text impossible to process.

    A model without token types (`num_types` 0) ignores those that a tokenizer produces for pairs.
    """
    prompt, types = request.prompt, request.token_types
    check_tokens(prompt, vocab_size)
    if len(prompt) > max_model_len:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; this model reads at most {max_model_len}",
            param="prompt",
        )
    if types is None:
        return
    if len(types) != len(prompt):
        raise RequestError(
            f"{len(types)} token_types for {len(prompt)} tokens; give one for each",
            param="token_types",
        )
    if num_types and not all(0 <= one < num_types for one in types):
        raise RequestError(
            f"token_types must be from 0 to {num_types - 1}, found {min(types)} to {max(types)}",
            param="token_types",
        )


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError naming the first sampling parameter that is out of range or NaN."""
    checks: tuple[tuple[str, bool, str], ...] = (
        ("max_tokens", sampling.max_tokens >= 0, "0 (only process the prompt) or more"),
        ("temperature", sampling.temperature >= 0, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("seed", sampling.seed is None or sampling.seed >= 0, "0 or more"),
        ("top_k", sampling.top_k >= 0, "0 (all tokens) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "from 0 to max_tokens"),
        ("drafted_tokens", sampling.drafted_tokens >= 0, "0 or more"),
        ("logprobs", sampling.logprobs is None or sampling.logprobs >= 0, "0 or more"),
        ("prompt_logprobs", (sampling.prompt_logprobs or 0) >= 0, "0 or more"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "above 0 and finite"),
        ("presence_penalty", math.isfinite(sampling.presence_penalty), "finite"),
        ("frequency_penalty", math.isfinite(sampling.frequency_penalty), "finite"),
    )
    for name, holds, expected in checks:
        if not holds:
            found = getattr(sampling, name)
            raise RequestError(f"{name} must be {expected}, found {found}", param=name)
    for token, bias in sampling.logit_bias:
        if not (0 <= token < vocab_size and math.isfinite(bias)):
            raise RequestError(
                f"logit_bias adds {bias} to token {token}; the number must be finite, and the "
                f"token one of the {vocab_size} in the vocabulary",
                param="logit_bias",
            )
    _check_choice(sampling, vocab_size)


def _check_choice(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError unless there is always a token to choose.

    Many choices may share long lists, so the work does not grow with the allowed tokens.
    """
    allowed = sampling.allowed_token_ids
    last = {word[-1] for word in sampling.bad_words}
    # They are sorted.
    ends = () if allowed is None else (*allowed[:1].tolist(), *allowed[-1:].tolist())
    ids: dict[str, Iterable[int]] = {
        "allowed_token_ids": ends,
        "bad_words": last,
        "logprob_token_ids": sampling.logprob_token_ids,
    }
    for name, tokens in ids.items():
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{name} has the token {token}; the vocabulary has {vocab_size}", param=name
                )
    if (allowed is not None or last) and sampling.grammar is not None:
        name = "bad_words" if allowed is None else "allowed_token_ids"
        raise RequestError(
            f"{name} cannot be combined with a grammar; leave one out",
            param=name,
        )
    stops = sampling.stop_token_ids if sampling.min_tokens else frozenset()
    never = last | {token for token in stops if token < vocab_size}
    num_left = vocab_size - len(never) if allowed is None else _num_besides(allowed, never)
    if num_left <= 0:
        name = "min_tokens" if stops else "bad_words" if last else "allowed_token_ids"
        raise RequestError(
            f"{name} may leave no token to choose; allow more, or leave it out", param=name
        )


def _num_besides(allowed: NDArray[np.int64], never: set[int]) -> int:
    """Return how many of the sorted tokens are not among the others."""
    others = np.array(sorted(never), np.int64)
    places = np.searchsorted(allowed, others)
    is_within = places < len(allowed)
    return len(allowed) - int(np.count_nonzero(allowed[places[is_within]] == others[is_within]))
