"""A grammar of tests: the tokens of each step, whatever they write."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import RequestError

VOCAB = 97  # of the small models
FAILURE = RequestError("the grammar is too large", param="regex")


class Steps:
    """The state of a `Ladder`."""

    def __init__(self, ladder: "Ladder", count: int = 0) -> None:
        self.ladder, self.count = ladder, count
        self.allowed, self.may_end = self._allowed(), count in ladder.ends

    def accept(self, token: int) -> None:
        assert self.allowed[token]
        if self.count == self.ladder.fails_after:
            raise FAILURE
        self.count += 1
        self.allowed, self.may_end = self._allowed(), self.count in self.ladder.ends

    def _allowed(self) -> NDArray[np.bool_]:
        allowed = np.zeros(self.ladder.vocab_size, np.bool_)
        if self.count < len(self.ladder.tokens):
            allowed[list(self.ladder.tokens[self.count])] = True
        return allowed


@dataclass(frozen=True)
class Ladder:
    """A grammar of one step after another: the tokens of each, and after how many one may end."""

    tokens: tuple[tuple[int, ...], ...]
    ends: frozenset[int]
    fails_after: int | None = None
    vocab_size: int = VOCAB

    def start(self) -> Steps:
        return Steps(self)


def ladder(*tokens: tuple[int, ...], ends: tuple[int, ...] = ()) -> Ladder:
    """Return a grammar that may also end after its last step."""
    return Ladder(tokens, frozenset({*ends, len(tokens)}))
