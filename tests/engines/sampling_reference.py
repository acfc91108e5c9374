"""A reference sampler: one row in plain loops, written from the parameters' definitions."""

import math
from collections.abc import Sequence

from sgate_serve.engines.contract import SamplingParams


def adjusted(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """Return the logits after all adjustments that also apply to greedy sampling."""
    logits = list(logits)
    for token in range(len(logits)):
        if len(output) < params.min_tokens and token in params.stop_token_ids:
            logits[token] = -math.inf
        logits[token] += dict(params.logit_bias).get(token, 0.0)
        if token in prompt or token in output:
            penalty = params.repetition_penalty
            logits[token] *= 1 / penalty if logits[token] > 0 else penalty
        logits[token] -= params.frequency_penalty * list(output).count(token)
        if token in output:
            logits[token] -= params.presence_penalty
    return logits


def distribution(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Return the probabilities with which tokens are drawn; the temperature is above 0."""
    probabilities = _softmax([logit / params.temperature for logit in logits])
    floor = params.min_p * max(probabilities)
    probabilities = [p if p >= floor else 0.0 for p in probabilities]
    if params.top_k:
        last = sorted(probabilities, reverse=True)[: params.top_k][-1]
        probabilities = _scaled([p if p >= last else 0.0 for p in probabilities])
    probabilities, kept, mass = _scaled(probabilities), [0.0] * len(probabilities), 0.0
    for token in sorted(range(len(kept)), key=lambda token: (-probabilities[token], token)):
        if mass < params.top_p:
            kept[token] = probabilities[token]
        mass += probabilities[token]
    return _scaled(kept)


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    return _scaled([math.exp(logit - top) for logit in logits])


def _scaled(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]
