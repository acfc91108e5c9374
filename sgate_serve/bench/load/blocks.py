"""Random text for requests of which a trace states only the length, and what they share.

The format is that of Mooncake's traces (https://github.com/kvcache-ai/Mooncake): every block of 512
tokens has a hash, equal in requests that begin alike up to the end of the block.
"""

from dataclasses import dataclass

import numpy as np

BLOCK_LEN = 512
# What a stream of random numbers is for.
SHARED, OWN = 1, 2


@dataclass(frozen=True)
class Blocks:
    """A prompt of `num_tokens` tokens, of which `hash_ids` name the first blocks of 512.

    The last block may be cut short; tokens after the last hash are the prompt's own.
    """

    num_tokens: int
    hash_ids: tuple[int, ...] = ()

    def draw(self, num_ids: int, seed: tuple[int, ...], number: int) -> list[int]:
        """Draw the tokens as numbers below `num_ids`: the same in every block of the same hash.

        `number` is that of the prompt, for the tokens that are its own.
        """
        found: list[int] = []
        for hash_id in self.hash_ids:
            generator = np.random.default_rng([*seed, SHARED, hash_id])
            found += generator.integers(0, num_ids, BLOCK_LEN).tolist()
        num_own = self.num_tokens - len(found)
        if num_own > 0:
            generator = np.random.default_rng([*seed, OWN, number])
            found += generator.integers(0, num_ids, num_own).tolist()
        return found[: self.num_tokens]
