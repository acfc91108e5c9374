"""A second model that answers a share of the requests too."""

import logging
import math
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sgate_serve.engines.contract import TokenLogprobs
from sgate_serve.errors import SgateError
from sgate_serve.server.server_options import ServerOptions
from sgate_serve.server.shadow.agreement import (
    NUM_TOP,
    Agreement,
    Answer,
    divergence,
    edit_distance,
)
from sgate_serve.server.shadow.shadow import check_same_tokens
from tests.server.hash_engine import HashEngine
from tests.server.live import EOS_ID, VOCAB_SIZE, model_of, serving, token_ids, wait_until

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_edit_distance_is_levenshteins(ours: list[int], reference: list[int]) -> None:
    def distance(a: int, b: int) -> int:
        if not a or not b:
            return a + b
        replaced = table[a - 1, b - 1] + (ours[a - 1] != reference[b - 1])
        return min(table[a - 1, b] + 1, table[a, b - 1] + 1, replaced)

    table: dict[tuple[int, int], int] = {}
    for a in range(len(ours) + 1):
        for b in range(len(reference) + 1):
            table[a, b] = distance(a, b)
    longest = max(len(ours), len(reference), 1)
    assert edit_distance(ours, reference) == table[len(ours), len(reference)] / longest


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_divergence_is_at_most_that_of_all_tokens(seed: int, width: float) -> None:
    logits = np.random.default_rng(seed).normal(scale=width, size=(2, 100))
    ours, reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    exact = float((np.exp(reference) * (reference - ours)).sum())
    found = divergence(_top(ours, NUM_TOP), _top(reference, NUM_TOP))
    assert 0 <= found <= exact + 1e-9
    assert divergence(_top(ours, 100), _top(reference, 100)) == pytest.approx(exact, abs=1e-6)
    assert divergence(_top(ours, NUM_TOP), _top(ours, NUM_TOP)) == pytest.approx(0, abs=1e-12)


def test_distributions_are_compared_up_to_the_first_other_token() -> None:
    near, far = (
        TokenLogprobs(1, -0.1, ((1, -0.1), (2, -3.0))),
        TokenLogprobs(9, -0.1, ((9, -0.1),)),
    )
    ours = Answer([1, 1, 9], [near, near, far])
    reference = Answer([1, 2, 1], [near, near, near])
    agreement = Agreement.of(ours, reference, is_greedy=True)
    assert agreement == Agreement(first_token=True, divergence=0.0, distance=2 / 3)
    other = Agreement.of(Answer([9], [far]), reference, is_greedy=False)
    assert other is not None and not other.first_token and other.distance is None
    assert other.divergence > 1
    assert Agreement.of(Answer(), reference, is_greedy=True) is None
    impossible = TokenLogprobs(1, -800.0, ((1, -800.0), (2, -900.0)))
    assert divergence(far, impossible) >= 0


def test_a_share_of_the_requests_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    served = model_of(HashEngine(VOCAB_SIZE, script=[*token_ids("abcd"), EOS_ID]))
    engine = HashEngine(VOCAB_SIZE, script=[*token_ids("abxd"), EOS_ID])
    body = {"prompt": "Hi", "max_tokens": 32, "temperature": 0}
    with (
        caplog.at_level(logging.INFO),
        serving(lambda: served, model_of(engine), shadow_share=0.5) as client,
    ):
        wait_until(lambda: client.get("/health").status_code == 200)
        wait_until(lambda: bool(_complete(client, body)) and bool(_metrics(client)))
        while _outcomes(client).get("compared", 0) < 3:
            answer = _complete(client, body)
            assert (answer["text"], answer["finish_reason"]) == ("abcd", "stop")
            assert answer["logprobs"] is None
            wait_until(lambda: len(engine.asked) == sum(_outcomes(client).values()))
        _complete(client, body | {"logprobs": 2})
        _complete(client, body | {"logprobs": 2})
        found = _metrics(client)
    assert found["sgate:shadow_requests_total", "unsuited"] == 1
    assert found["sgate:shadow_first_token_total", "true"] == 3
    assert found["sgate:shadow_edit_distance_sum", None] == pytest.approx(3 / 4)
    assert found["sgate:shadow_time_to_first_token_seconds_count", "shadow"] == 3
    # As many tokens as the answer had, and one to see it end.
    assert {asked.max_tokens for asked in engine.asked} == {5}
    summary = next(m for m in caplog.messages if m.startswith("shadow some/tiny-model: "))
    assert (
        "3 of 4 requests of its share compared (1 unsuited): the first token agrees in 100.0%"
        in summary
    )
    assert "of 3 greedy answers 0.0% are equal, mean edit distance 0.25" in summary


def test_requests_go_on_without_a_shadow_that_is_busy_or_fails() -> None:
    served, engine = model_of(HashEngine(VOCAB_SIZE)), HashEngine(VOCAB_SIZE, step_seconds=0.2)
    body = {"prompt": "Hi", "max_tokens": 8}
    with serving(lambda: served, model_of(engine), shadow_share=1.0) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        wait_until(lambda: bool(_complete(client, body)) and bool(engine.asked))
        _complete(client, body)
        assert _outcomes(client)["no_room"] >= 1
        engine.fails.set()
        wait_until(lambda: _outcomes(client).get("failed") == 1)
        assert _complete(client, body)["finish_reason"] == "length"
        assert client.get("/health").status_code == 200


def test_a_shadow_with_other_tokens_is_refused() -> None:
    served = model_of(HashEngine(VOCAB_SIZE))
    with pytest.raises(SgateError, match="has other tokens than some/tiny-model; give the dense"):
        check_same_tokens(served, model_of(HashEngine(VOCAB_SIZE + 1)))
    check_same_tokens(served, served)


@pytest.mark.parametrize("share", [0.0, 1.5, math.nan])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(SgateError, match=r"shadow_share is .* must be above 0 and at most 1"):
        ServerOptions(shadow="folder", shadow_share=share)
    with pytest.raises(SgateError, match="--shadow-share has no effect without --shadow"):
        ServerOptions(shadow_share=0.5)


def _top(logprobs: Any, count: int) -> TokenLogprobs:
    order = np.argsort(-logprobs)[:count]
    top = tuple((int(token), float(logprobs[token])) for token in order)
    return TokenLogprobs(*top[0], top)


def _complete(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _outcomes(client: httpx.Client) -> dict[str | None, float]:
    name = "sgate:shadow_requests_total"
    return {label: value for (of, label), value in _metrics(client).items() if of == name}


def _metrics(client: httpx.Client) -> dict[tuple[str, str | None], float]:
    """The shadow's values by name and label, without the buckets and the times of creation."""
    text = client.get("/metrics").text
    return {
        (sample.name, next(iter(sample.labels.values()), None)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sgate:shadow")
        and not sample.name.endswith(("_bucket", "_created"))
    }
