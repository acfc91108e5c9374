"""Token choice: greedy, temperature and top-p against the distribution they promise."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sgate_serve.engines.base import SamplingParams
from sgate_serve.engines.sampling import Sampler, choose_tokens

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draw(count: int, temperature: float, top_p: float = 1.0) -> NDArray[np.float64]:
    """Return how often each token came, of `count` rows with a seed each."""
    samplers = [
        Sampler.start(SamplingParams(temperature=temperature, top_p=top_p, seed=seed))
        for seed in range(count)
    ]
    tokens = choose_tokens(np.tile(LOGITS, (count, 1)), samplers)
    return np.bincount(tokens, minlength=4) / count


def greedy_rows(count: int) -> Sequence[Sampler]:
    return [Sampler.start(SamplingParams(temperature=0.0)) for _ in range(count)]


def test_temperature_zero_takes_the_best_and_breaks_ties_low() -> None:
    logits = np.array([[1, 3, 2], [5, 0, 5]], np.float32)
    assert choose_tokens(logits, greedy_rows(2)) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    weights = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(draw(4000, temperature), weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3])]
)
def test_top_p_keeps_the_fewest_likeliest_tokens(top_p: float, kept: list[int]) -> None:
    expected = np.where(np.isin(np.arange(4), kept), np.exp(LOGITS), 0)
    np.testing.assert_allclose(draw(4000, 1.0, top_p), expected / expected.sum(), atol=0.03)


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    assert draw(50, 1e-320).tolist() == [0, 1, 0, 0]


def test_top_p_over_a_long_tail_is_that_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for seed in range(200):
        logits = (rng.standard_normal(500) * rng.uniform(0.1, 5)).astype(np.float32)
        top_p = float(rng.uniform(0.01, 0.999))
        weights = np.exp(logits.astype(np.float64))
        order = np.argsort(-weights, kind="stable")
        mass = (weights[order] / weights.sum()).cumsum()
        mass = mass[: int((mass < top_p).sum()) + 1]
        uniform = np.random.default_rng(seed).random()
        expected = order[int((mass <= uniform * mass[-1]).sum())]
        sampler = Sampler.start(SamplingParams(temperature=1.0, top_p=top_p, seed=seed))
        assert choose_tokens(logits[None], [sampler]) == [expected]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    params = [SamplingParams(temperature=t, top_p=0.9, seed=5) for t in (0, 0.7, 1, 0, 2, 1.3)]
    together = choose_tokens(logits, [Sampler.start(p) for p in params])
    alone = [
        choose_tokens(row[None], [Sampler.start(p)])[0]
        for row, p in zip(logits, params, strict=True)
    ]
    assert together == alone


def test_a_generator_moves_on_with_each_token() -> None:
    sampler = Sampler.start(SamplingParams(temperature=1.0, seed=0))
    tokens = [choose_tokens(LOGITS[None], [sampler])[0] for _ in range(20)]
    assert len(set(tokens)) > 1
