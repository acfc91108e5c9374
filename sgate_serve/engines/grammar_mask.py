"""The mask of a grammar: each row keeps the logits of the tokens that its own grammar allows.

It comes before everything else, log-probabilities included, as in vLLM.
"""

from collections.abc import Sequence

import numpy as np

from sgate_serve.engines.sampling import Logits, Sampler


def within_grammars(logits: Logits, samplers: Sequence[Sampler]) -> Logits:
    """Return `logits` [rows, vocab] with -inf for every token that the row's grammar forbids.

    Where a text may end, the request's stop tokens are allowed. Without a grammar they are
    returned as they are.
    """
    if all(sampler.grammar is None for sampler in samplers):
        return logits
    logits = logits.copy()
    for row, sampler in zip(logits, samplers, strict=True):
        if sampler.grammar is not None:
            forbidden = ~sampler.grammar.allowed
            if sampler.grammar.may_end:
                forbidden[sampler.stops(len(row))] = False
            row[forbidden] = -np.inf
    return logits
