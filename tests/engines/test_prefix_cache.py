"""The prefixes of idle slots: which one a request continues, and which one goes first."""

import numpy as np
import pytest

from sgate_serve.engines.prefix_cache import PrefixCache


@pytest.fixture
def cache() -> PrefixCache:
    cache = PrefixCache()
    cache.keep(3, [1, 2, 3, 4])
    cache.keep(0, [1, 2, 9])
    return cache


def test_the_longest_common_beginning_wins(cache: PrefixCache) -> None:
    assert cache.longest(np.array([1, 2, 3, 7])) == (3, 3)
    assert cache.longest(np.array([1, 2, 9, 9, 9])) == (0, 3)
    assert cache.longest(np.array([5, 1, 2])) == (-1, 0)
    # Of equals the one that was used last.
    assert cache.longest(np.array([1, 2, 7])) == (0, 2)
    # The last token is always computed.
    assert cache.longest(np.array([1, 2, 3, 4])) == (3, 3)
    assert cache.longest(np.array([1])) == (-1, 0)


def test_running_slots_count_too_but_an_idle_one_is_better(cache: PrefixCache) -> None:
    assert cache.longest(
        np.array([1, 2, 3, 4, 5]), [(7, np.array((1, 2, 3, 4, 5, 6), np.int64))]
    ) == (3, 4)
    assert cache.longest(
        np.array([1, 2, 3, 4, 5, 6]), [(7, np.array((1, 2, 3, 4, 5, 6), np.int64))]
    ) == (7, 5)
    assert cache.longest(np.array([1, 2, 3]), [(7, np.array((), np.int64))]) == (0, 2)


def test_tokens_are_counted_and_the_oldest_goes_first(cache: PrefixCache) -> None:
    assert (cache.num_tokens, cache.oldest(), cache.length(0)) == (7, 3, 3)
    cache.drop(3)
    assert (cache.num_tokens, cache.oldest(), 3 in cache) == (3, 0, False)
    cache.keep(3, [5])
    assert cache.oldest() == 0 and cache
    for slot in (0, 3):
        cache.drop(slot)
    assert not cache and cache.num_tokens == 0
