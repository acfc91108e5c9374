"""Parameters of sampling, from the body to the engine; what they do is tested at the engine."""

from typing import Any

import httpx
import pytest

from sgate_serve.engines.contract import SamplingParams
from tests.server.hash_engine import HashEngine
from tests.server.live import EOS_ID, VOCAB_SIZE, refusal, serving_engine, speaking, token_ids

MESSAGES = [{"role": "user", "content": "the cat"}]


def test_every_parameter_reaches_the_engine_on_both_endpoints() -> None:
    body = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "min_tokens": 2,
        "max_tokens": 3,
        "stop_token_ids": [9, 11],
        "repetition_penalty": 1.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"5": -100, "6": 1.5},
        "seed": 3,
        "prompt_lookup_num_tokens": 4,
    }
    expected = SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop_token_ids=frozenset({9, 11, EOS_ID}),
        top_k=7,
        min_p=0.1,
        min_tokens=2,
        repetition_penalty=1.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((5, -100.0), (6, 1.5)),
        drafted_tokens=4,
    )
    engine = HashEngine(VOCAB_SIZE)
    with serving_engine(engine) as client:
        client.post("/v1/completions", json={"prompt": "a", **body}).raise_for_status()
        chat = {"messages": MESSAGES, **body, "top_k": -1, "ignore_eos": True}
        client.post("/v1/chat/completions", json=chat).raise_for_status()
    assert engine.asked[0] == expected
    assert (engine.asked[1].top_k, engine.asked[1].stop_token_ids) == (0, frozenset({9, 11}))


def test_values_that_ask_for_nothing_are_the_engines_defaults() -> None:
    neutral = {
        "top_k": -1,
        "min_p": 0,
        "min_tokens": 0,
        "stop_token_ids": [],
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "prompt_lookup_num_tokens": 0,
    }
    engine = HashEngine(VOCAB_SIZE)
    with serving_engine(engine) as client:
        for extra in (neutral, dict.fromkeys(neutral)):
            client.post("/v1/completions", json={"prompt": "a", **extra}).raise_for_status()
    assert engine.asked == [SamplingParams(stop_token_ids=frozenset({EOS_ID}))] * 2


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"min_tokens": 17}, "min_tokens", "is 17, but only 16 may be generated; lower it or"),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids", "has the token id -1; this model's ids"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "has the token id 999999; this model's"),
    ],
)
def test_values_beyond_the_model_are_refused(
    client: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = client.post("/v1/completions", json={"prompt": "a", **body})
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == param
    assert message in error["message"]


def test_no_stop_string_counts_in_the_first_min_tokens() -> None:
    engine = speaking("the cat sat on the cat mat")
    body = {"prompt": "a", "max_tokens": 50, "stop": " cat"}
    with serving_engine(engine) as client:
        for min_tokens, text in ((0, "the"), (len(token_ids("the cat")), "the cat sat on the")):
            answer = client.post("/v1/completions", json={**body, "min_tokens": min_tokens}).json()
            assert answer["choices"][0]["text"] == text
