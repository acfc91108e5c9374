"""Token choice: each parameter against its definition, all of them against a plain reference."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sgate_serve.engines.contract import SamplingParams
from sgate_serve.engines.sampling import Sampler, choose_tokens
from tests.engines.sampling_reference import adjusted, distribution

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draw(count: int, temperature: float, top_p: float = 1.0) -> NDArray[np.float64]:
    """Return the frequency of each token over `count` rows with different seeds."""
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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("top_k", [0, 2, 50])
@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize(
    ("value", "penalty"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (0.5, 1e-46)]
)
def test_logits_that_are_no_numbers_end_in_some_token(
    value: float, penalty: float, count: int, top_k: int
) -> None:
    """One row must not stop all others: graphs and penalties may overflow."""
    params = SamplingParams(
        temperature=1.0, top_p=0.9, top_k=top_k, seed=0, repetition_penalty=penalty
    )
    logits = np.zeros((1, 300), np.float32)
    logits[0, :count] = value
    (token,) = choose_tokens(logits, [Sampler.start(params, prompt=range(5))])
    assert 0 <= token < 300


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    weights = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(draw(4000, temperature), weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1]), (0.49, [1]), (0.51, [1, 3]), (0.76, [1, 2, 3])]
)
def test_top_p_keeps_the_fewest_likeliest_tokens(top_p: float, kept: list[int]) -> None:
    expected = np.where(np.isin(np.arange(4), kept), np.exp(LOGITS), 0)
    np.testing.assert_allclose(draw(4000, 1.0, top_p), expected / expected.sum(), atol=0.03)


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    assert draw(50, 1e-320).tolist() == [0, 1, 0, 0]


def test_top_p_over_a_long_tail_is_that_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = (rng.standard_normal(700) * rng.uniform(0.1, 5)).astype(np.float32)
        top_p = float(rng.uniform(0.01, 0.999))
        weights = np.exp(logits.astype(np.float64))
        order = np.argsort(-weights, kind="stable")
        mass = (weights[order] / weights.sum()).cumsum()
        kept = order[: int((mass < top_p).sum()) + 1]
        params = SamplingParams(temperature=1.0, top_p=top_p)
        samplers = [Sampler.start(replace(params, seed=seed)) for seed in range(500)]
        found = np.bincount(choose_tokens(np.tile(logits, (500, 1)), samplers), minlength=700) / 500
        assert found[kept].sum() == pytest.approx(1)
        # For an order statistic: the mass of the most likely half of the kept tokens.
        half = kept[: -(-len(kept) // 2)]
        expected = weights[half].sum() / weights[kept].sum()
        assert found[half].sum() == pytest.approx(expected, abs=0.08)


def test_equal_tokens_are_kept_in_order() -> None:
    samplers = [Sampler.start(SamplingParams(top_p=0.45, seed=seed)) for seed in range(300)]
    tokens = choose_tokens(np.zeros((300, 10), np.float32), samplers)
    assert sorted(set(tokens)) == [0, 1, 2, 3, 4]


class Uniform(np.random.Generator):
    """Always draws the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64())
        self.value = value

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return self.value


@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_a_token_without_weight_never_comes(value: float) -> None:
    logits = np.full((1, 1000), -np.inf, np.float32)
    logits[0, [300, 700]] = [1.0, 2.0]
    sampler = Sampler(SamplingParams(), Uniform(value), {})
    assert choose_tokens(logits, [sampler])[0] in (300, 700)


def test_top_k_keeps_the_likeliest_of_many_tokens_and_ties_with_the_last() -> None:
    rng = np.random.default_rng(0)
    for number in range(200):
        logits = (rng.standard_normal(5000) * rng.uniform(0.1, 5)).astype(np.float32)
        if number % 2:
            logits = logits.round(1)
        top_k, uniform = int(rng.integers(1, 80)), float(rng.random())
        weights = np.where(logits >= np.sort(logits)[-top_k], np.exp(logits.astype(float)), 0)
        shares = weights.cumsum() / weights.sum()
        sampler = Sampler(SamplingParams(top_k=top_k), Uniform(uniform), {})
        (token,) = choose_tokens(logits[None], [sampler])
        assert weights[token] > 0
        # The two sums may be rounded to different sides of the number that is drawn.
        assert shares[token] > uniform - 1e-6
        assert shares[token] - weights[token] / weights.sum() < uniform + 1e-6


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


VOCAB = 24


def random_params(rng: np.random.Generator, temperature: float) -> SamplingParams:
    """Return parameters, each of which is neutral about half of the time."""

    def maybe(value: float, neutral: float) -> float:
        return value if rng.random() < 0.5 else neutral

    biased = rng.choice(VOCAB, 3, replace=False).tolist() if rng.random() < 0.5 else []
    return SamplingParams(
        temperature=temperature,
        top_p=maybe(float(rng.uniform(0.2, 0.95)), 1.0),
        stop_token_ids=frozenset(rng.choice(VOCAB, 4, replace=False).tolist()),
        top_k=int(maybe(int(rng.integers(1, VOCAB + 5)), 0)),
        min_p=maybe(float(rng.uniform(0.01, 0.4)), 0.0),
        min_tokens=int(maybe(int(rng.integers(1, 6)), 0)),
        repetition_penalty=maybe(float(rng.uniform(0.6, 2)), 1.0),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        logit_bias=tuple((token, float(rng.uniform(-5, 5))) for token in biased),
    )


def random_batch(
    rng: np.random.Generator, temperature: float
) -> tuple[list[Sampler], list[list[int]], list[list[int]]]:
    """Return samplers that have already chosen some tokens, their prompts and these tokens."""
    samplers, prompts, outputs = [], [], []
    for _ in range(5):
        prompt: list[int] = rng.integers(0, VOCAB, int(rng.integers(1, 9))).tolist()
        output: list[int] = rng.integers(0, VOCAB, int(rng.integers(0, 9))).tolist()
        sampler = Sampler.start(random_params(rng, temperature), prompt)
        for token in output:
            sampler.record(token)
        samplers.append(sampler)
        prompts.append(prompt)
        outputs.append(output)
    return samplers, prompts, outputs


@pytest.mark.parametrize("seed", range(60))
def test_greedy_rows_choose_by_the_references_logits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samplers, prompts, outputs = random_batch(rng, temperature=0.0)
    logits = (rng.standard_normal((5, VOCAB)) * 2).astype(np.float32)
    before = logits.copy()
    expected = [
        int(np.argmax(adjusted(row.tolist(), sampler.params, prompt, output)))
        for row, sampler, prompt, output in zip(logits, samplers, prompts, outputs, strict=True)
    ]
    assert choose_tokens(logits, samplers) == expected
    np.testing.assert_array_equal(logits, before)
    assert [sampler.num_generated for sampler in samplers] == [len(o) + 1 for o in outputs]


@pytest.mark.parametrize("seed", range(12))
def test_sampled_rows_are_drawn_from_the_references_distribution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 1500
    samplers, prompts, outputs = random_batch(rng, temperature=float(rng.uniform(0.5, 2)))
    logits = (rng.standard_normal((5, VOCAB)) * 2).astype(np.float32)
    for row, sampler, prompt, output in zip(logits, samplers, prompts, outputs, strict=True):
        expected = distribution(
            adjusted(row.tolist(), sampler.params, prompt, output), sampler.params
        )
        many = [
            Sampler(sampler.params, np.random.default_rng(draw), dict(sampler.counts), len(output))
            for draw in range(count)
        ]
        tokens = choose_tokens(np.tile(row, (count, 1)), many)
        found = np.bincount(tokens, minlength=VOCAB) / count
        assert not found[np.array(expected) == 0].any()
        np.testing.assert_allclose(found, expected, atol=0.06)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=1), [1]),
        (SamplingParams(top_k=3), [1, 2, 3]),
        (SamplingParams(top_k=9), [0, 1, 2, 3]),
        (SamplingParams(min_p=0.45), [1, 3]),
        (SamplingParams(min_p=1.0), [1]),
        (SamplingParams(top_k=2, top_p=0.6), [1]),
        (SamplingParams(stop_token_ids=frozenset({1, 900}), min_tokens=1), [0, 2, 3]),
        (SamplingParams(logit_bias=((1, -100.0), (0, -100.0))), [2, 3]),
        (SamplingParams(allowed_token_ids=np.array([0, 3]), logit_bias=((1, 100.0),)), [0, 3]),
        (SamplingParams(bad_words=((1,), (3, 0), (3,))), [0, 2]),
    ],
)
def test_each_filter_keeps_the_tokens_of_its_definition(
    params: SamplingParams, kept: list[int]
) -> None:
    samplers = [Sampler.start(replace(params, seed=seed)) for seed in range(200)]
    assert sorted(set(choose_tokens(np.tile(LOGITS, (200, 1)), samplers))) == kept


def test_the_last_token_of_a_bad_word_never_follows_its_others() -> None:
    sampler = Sampler.start(SamplingParams(temperature=0, bad_words=((1, 1), (3, 1, 3))))
    assert [choose_tokens(LOGITS[None], [sampler])[0] for _ in range(6)] == [1, 3, 1, 2, 1, 3]


def test_top_k_keeps_tokens_as_likely_as_its_last() -> None:
    logits = np.array([[2, 1, 1, 0]], np.float32)
    samplers = [Sampler.start(SamplingParams(top_k=2, seed=seed)) for seed in range(200)]
    assert set(choose_tokens(np.repeat(logits, 200, axis=0), samplers)) == {0, 1, 2}


def test_penalties_follow_what_is_generated() -> None:
    logits = np.array([[3, 2.5, 2, 0]], np.float32)
    for params, tokens in (
        (SamplingParams(temperature=0, presence_penalty=0.6), [0, 1, 0, 0]),
        (SamplingParams(temperature=0, frequency_penalty=0.6), [0, 1, 0, 2]),
        (SamplingParams(temperature=0, repetition_penalty=2.0), [1, 2, 0, 0]),
    ):
        sampler = Sampler.start(params, prompt=[0])
        assert [choose_tokens(logits, [sampler])[0] for _ in range(4)] == tokens
