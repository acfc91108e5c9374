"""Log-probabilities of tokens: the log-softmax of raw logits, like vLLM's `raw_logprobs`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import TokenLogprobs
from sgate_serve.engines.sampling import Logits


def token_logprobs(
    logits: Logits, tokens: Sequence[int], shown: Sequence[int | tuple[int, ...]]
) -> list[TokenLogprobs]:
    """Return for each row of `logits` [rows, vocab] log-probability and rank of `tokens[row]`.

    Each comes with the `shown[row]` most likely tokens of its row, or fewer if its grammar allows
    no more; or with the tokens of these ids and itself.
    """
    best = logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits - best).sum(axis=-1, dtype=np.float64)
    totals: NDArray[np.float64] = best[:, 0] + np.log(sums)
    logprobs = []
    for row, token, asked, total in zip(logits, tokens, shown, totals, strict=True):
        if isinstance(asked, int):
            others = _likeliest(row, asked)
        else:
            others = sorted({token, *asked}, key=lambda index: (-row[index], index))
        top = tuple((index, float(row[index] - total)) for index in others)
        rank = int(np.count_nonzero(row >= row[token]))
        logprobs.append(TokenLogprobs(token, float(row[token] - total), top, rank))
    return logprobs


def _likeliest(row: Logits, num: int) -> list[int]:
    """Return the ids of the `num` largest logits, largest first; ties are in order of their ids."""
    if not num:
        return []
    rank = max(0, len(row) - num)
    candidates = np.flatnonzero(row >= np.partition(row, rank)[rank])
    order = np.argsort(-row[candidates], kind="stable")[:num]
    likeliest = candidates[order]
    indices: list[int] = likeliest[row[likeliest] > -np.inf].tolist()
    return indices
