"""Log-probabilities of tokens: the log-softmax of raw logits, as vLLM's `raw_logprobs`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.base import TokenLogprobs
from sgate_serve.engines.sampling import Logits


def score_tokens(logits: Logits, tokens: Sequence[int], nums: Sequence[int]) -> list[TokenLogprobs]:
    """Return the score of `tokens[row]` for each row of `logits`, beside its `nums[row]` best."""
    best = logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits - best).sum(axis=-1, dtype=np.float64)
    totals: NDArray[np.float64] = best[:, 0] + np.log(sums)
    scores = []
    for row, token, num, total in zip(logits, tokens, nums, totals, strict=True):
        top = tuple((index, float(row[index] - total)) for index in _likeliest(row, num))
        scores.append(TokenLogprobs(token, float(row[token] - total), top))
    return scores


def _likeliest(row: Logits, num: int) -> list[int]:
    """Return the ids of the `num` largest, best first; of equal ones the lowest id comes first."""
    if not num:
        return []
    rank = max(0, len(row) - num)
    candidates = np.flatnonzero(row >= np.partition(row, rank)[rank])
    order = np.argsort(-row[candidates], kind="stable")[:num]
    indices: list[int] = candidates[order].tolist()
    return indices
