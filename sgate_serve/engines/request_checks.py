"""Checks of requests before they are queued: those that an engine can never run are rejected."""

import math
from collections.abc import Sequence

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
    tokens_left = vocab_size - len(sampling.stop_token_ids)
    checks: tuple[tuple[str, bool, str], ...] = (
        ("max_tokens", sampling.max_tokens >= 0, "0 (only process the prompt) or more"),
        ("temperature", sampling.temperature >= 0, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("seed", sampling.seed is None or sampling.seed >= 0, "0 or more"),
        ("top_k", sampling.top_k >= 0, "0 (all tokens) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "from 0 to max_tokens"),
        ("min_tokens", not sampling.min_tokens or tokens_left > 0, "0 if every token stops"),
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
