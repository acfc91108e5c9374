"""The model runner that a slot engine drives: a model with a KV cache divided into slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.sampling import Logits
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.precision import Precision


@dataclass(frozen=True)
class TokenChunk:
    """New tokens for one slot; logits are returned after each of the last `num_logits` tokens."""

    slot: int
    tokens: Sequence[int]
    num_logits: int = 1


class Runner(Protocol):
    """A model with a KV cache of `num_slots` rows; each slot holds the tokens of one request.

    All slots together hold at most `cache_tokens`. `precision` is the format of the weights.
    `shares_prefixes` says whether tokens may stay in an idle slot, and move to another one.
    """

    num_slots: int
    max_model_len: int
    cache_tokens: int
    vocab_size: int
    precision: Precision
    shares_prefixes: bool

    def forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        """Append tokens to distinct slots; return the logits [n, vocab] in the order of chunks."""

    def release(self, slot: int) -> None:
        """Discard the tokens of a slot."""

    def share(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`, which may be `slot` itself.

        Only a runner that `shares_prefixes` is asked for it.
        """


def all_logits(runner: Runner, tokens: NDArray[np.int64], chunk: int | None = None) -> Logits:
    """Return the logits [s, vocab] at every position of `tokens` [s]; needs an idle runner.

    Tokens are appended `chunk` at a time, as the prompts of requests are, or all at once. Raises
    EngineError if the tokens do not fit into a slot.
    """
    if len(tokens) > runner.max_model_len:
        raise EngineError(
            f"{len(tokens)} tokens do not fit this runner's max_model_len of "
            f"{runner.max_model_len}; raise it or give fewer"
        )
    step = chunk or len(tokens)
    parts = [tokens[start : start + step].tolist() for start in range(0, len(tokens), step)]
    logits = [runner.forward([TokenChunk(0, part, len(part))]) for part in parts]
    runner.release(0)
    return np.concatenate(logits)
