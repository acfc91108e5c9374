"""Prompt lookup: drafts of the next tokens from a request's own text, which answers often repeat.

One call computes the logits after each drafted token. A token is chosen from them as without a
draft, and while it is what was drafted, so is the next one. In fp32 nothing but time changes; in
integers a close choice may (docs/format.md, "Reproducibility across batches").
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sgate_serve.engines.scheduler import ScheduledChunk

# The tokens at the end that are looked for, most first: fewer are found more often, and by chance.
MATCHES = (3, 2)


def with_looked_up(chunk: ScheduledChunk, most: int) -> ScheduledChunk:
    """Add a draft to the chunk of a decoding sequence whose request asks for lookup.

    All tokens of the chunk are `most` at most.
    """
    size = chunk.draft_size(chunk.sequence.request.sampling.drafted_tokens, most)
    return replace(chunk, draft=drafted(chunk.sequence.tokens, size)) if size else chunk


def drafted(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    """Return up to `count` tokens that followed the last place where `tokens` went as they end."""
    ids = np.asarray(tokens, np.int64)
    for size in MATCHES:
        # A match may reach to the last token but one.
        if count < 1 or len(ids) <= size:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        (found,) = (windows == ids[-size:]).all(axis=1).nonzero()
        if len(found):
            start = int(found[-1]) + size
            return tuple(ids[start : start + count].tolist())
    return ()
