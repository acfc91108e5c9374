"""Prefixes that idle slots still hold in the KV cache, for requests that begin alike.

A system prompt, few-shot examples or the turns of a chat are then read once. Pure: it knows tokens
and slots, not keys and values.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class PrefixCache:
    """The tokens of idle slots, least recently used first."""

    def __init__(self) -> None:
        self._kept: dict[int, Ids] = {}
        self.num_tokens = 0

    def __contains__(self, slot: object) -> bool:
        return slot in self._kept

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """Remember the tokens of a slot that has become idle."""
        assert slot not in self._kept, f"slot {slot} is idle already"
        self._kept[slot] = np.asarray(tokens, np.int64)
        self.num_tokens += len(tokens)

    def drop(self, slot: int) -> None:
        """Forget a slot."""
        self.num_tokens -= len(self._kept.pop(slot))

    def oldest(self) -> int:
        """Return the slot that was used least recently."""
        return next(iter(self._kept))

    def length(self, slot: int) -> int:
        """Return how many tokens an idle slot holds."""
        return len(self._kept[slot])

    def longest(self, prompt: Ids, others: Iterable[tuple[int, Ids]] = ()) -> tuple[int, int]:
        """Return the slot that holds most of the beginning of a prompt, and how many tokens.

        `others` are further slots and the tokens that they hold. The last token does not count,
        since its logits are to be computed. Of equals an idle slot, and the one used last, is best.
        """
        found, most = -1, 0
        for slot, held in [*others, *self._kept.items()]:
            common = num_common(prompt[:-1], held)
            if common and common >= most:
                found, most = slot, common
        return found, most


def num_common(one: Ids, other: Ids) -> int:
    """Return the length of the longest common beginning."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size
