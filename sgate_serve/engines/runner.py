"""What a slot engine drives: a model with a KV cache whose rows are slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.sampling import Logits
from sgate_serve.errors import EngineError


@dataclass(frozen=True)
class Feed:
    """New tokens of one slot; logits are wanted after each of the last `num_logits`."""

    slot: int
    tokens: Sequence[int]
    num_logits: int = 1


class Runner(Protocol):
    """A model with a KV cache of `num_slots` rows; each slot holds the tokens of one request.

    All slots together hold at most `cache_tokens`.
    """

    num_slots: int
    max_model_len: int
    cache_tokens: int
    vocab_size: int

    def forward(self, feeds: Sequence[Feed]) -> Logits:
        """Append tokens to different slots; return the wanted logits [n, vocab], feed by feed."""

    def release(self, slot: int) -> None:
        """Forget what the slot holds."""


def all_logits(runner: Runner, tokens: NDArray[np.int64]) -> Logits:
    """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle runner.

    Raises EngineError if they do not fit a slot.
    """
    if len(tokens) > runner.max_model_len:
        raise EngineError(
            f"{len(tokens)} tokens do not fit this runner's max_model_len of "
            f"{runner.max_model_len}; raise it or give fewer"
        )
    logits = runner.forward([Feed(0, tokens.tolist(), len(tokens))])
    runner.release(0)
    return logits
