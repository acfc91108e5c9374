"""Which chunks of a step share a call of a graph with recurrent layers.

Such a layer computes every row of a call as far as the longest one: its kernel knows no lengths. So
single tokens beside a long chunk cost more than reading the weights once more.
"""

from collections.abc import Sequence

from sgate_serve.engines.runner import TokenChunk

# Places of padding that take as long as another call: about 0.5 ms each, and a call 60 ms (three
# recurrent layers of 16 heads of 128 by 128, hidden 1024, one thread).
WORTH_A_CALL = 128


def calls_of(chunks: Sequence[TokenChunk]) -> list[list[int]]:
    """Return the numbers of the chunks of each call: one, or single tokens after the others."""
    every = list(range(len(chunks)))
    single = [index for index in every if len(chunks[index].tokens) == 1]
    longer = [index for index in every if len(chunks[index].tokens) > 1]
    if not single or not longer:
        return [every]
    apart = sum(_num_places([chunks[index] for index in part]) for part in (longer, single))
    is_worth_it = _num_places(chunks) - apart > WORTH_A_CALL
    return [longer, single] if is_worth_it else [every]


def _num_places(chunks: Sequence[TokenChunk]) -> int:
    """Count the places of a call: it spans all rows from the first slot to the last."""
    slots = [chunk.slot for chunk in chunks]
    return (max(slots) - min(slots) + 1) * max(len(chunk.tokens) for chunk in chunks)
