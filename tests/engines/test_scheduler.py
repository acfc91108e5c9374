"""The order of scheduling, and the requests that are rejected."""

import math

import numpy as np
import pytest

from sgate_serve.engines.contract import Request, SamplingParams
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.scheduler import share_chunk
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.errors import EngineError, RequestError
from tests.engines.drive import Answer, greedy, prompt, step


def test_requests_are_admitted_in_order_of_arrival(onnx_engine: SlotEngine) -> None:
    names = [f"r{number}" for number in range(6)]
    answers = {name: Answer() for name in names}
    for name in names:
        onnx_engine.add(Request(name, prompt(2), greedy(3)))
    started: list[str] = []
    while onnx_engine.has_work():
        step(onnx_engine, answers)
        started += [name for name in names if answers[name].tokens and name not in started]
    assert started == names


def test_a_long_prompt_does_not_stop_running_streams(onnx_engine: SlotEngine) -> None:
    answers = {"stream": Answer(), "long": Answer()}
    onnx_engine.add(Request("stream", prompt(3), greedy(20)))
    step(onnx_engine, answers)
    onnx_engine.add(Request("long", prompt(25), greedy(2)))
    for _ in range(4):
        step(onnx_engine, answers)
    assert (len(answers["stream"].tokens), answers["long"].tokens) == (5, [])
    step(onnx_engine, answers)
    assert (len(answers["stream"].tokens), len(answers["long"].tokens)) == (6, 1)


def test_a_freed_slot_is_used_again(onnx_engine: SlotEngine) -> None:
    for number in range(4):
        onnx_engine.add(Request(f"r{number}", prompt(2), greedy(30)))
    onnx_engine.step()
    onnx_engine.abort("r1")
    onnx_engine.step()
    assert onnx_engine.stats().num_running == 3
    assert onnx_engine.stats().num_waiting == 0


def test_a_short_prompt_does_not_wait_behind_a_long_one(onnx_engine: SlotEngine) -> None:
    answers = {"long": Answer(), "short": Answer()}
    onnx_engine.add(Request("long", prompt(40), greedy(2)))
    onnx_engine.add(Request("short", prompt(2), greedy(2)))
    step(onnx_engine, answers)
    assert (len(answers["short"].tokens), answers["long"].tokens) == (1, [])


@pytest.mark.parametrize(
    ("lengths", "chunk", "expected"),
    [
        ([], 8, []),
        ([20], 8, [8]),
        ([3], 8, [3]),
        ([20, 20], 8, [4, 4]),
        ([20, 1], 8, [7, 1]),
        ([20, 9, 2], 8, [4, 2, 2]),
        ([1, 20, 20], 8, [1, 7, 0]),
        ([5, 5], 1, [1, 0]),
    ],
)
def test_sharing_a_chunk(lengths: list[int], chunk: int, expected: list[int]) -> None:
    assert share_chunk(lengths, chunk) == expected


def test_reusing_a_running_id_is_the_callers_bug(onnx_engine: SlotEngine) -> None:
    onnx_engine.add(Request("a", prompt(2), greedy()))
    with pytest.raises(AssertionError, match="request id a is in use"):
        onnx_engine.add(Request("a", prompt(2), greedy()))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "the prompt has no tokens; give at least one"),
        ((1, 2, 97), "prompt token 97 at index 2 is outside the vocabulary of 97 tokens"),
        ((1, -5), "prompt token -5 at index 1 is outside the vocabulary of 97 tokens"),
        ((1,) * 48, r"the prompt has 48 tokens; this server takes at most 47 \(model length 48"),
    ],
)
def test_impossible_prompts_are_refused(
    onnx_engine: SlotEngine, tokens: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        onnx_engine.add(Request("a", tokens, greedy()))
    assert (refusal.value.param, refusal.value.status) == ("prompt", 400)
    assert not onnx_engine.has_work()


@pytest.mark.parametrize(
    ("param", "sampling", "message"),
    [
        ("max_tokens", SamplingParams(-1), r"max_tokens must be 0 \(only process .* found -1"),
        ("logprobs", SamplingParams(logprobs=-1), "logprobs must be 0 or more, found -1"),
        ("prompt_logprobs", SamplingParams(prompt_logprobs=-1), "must be 0 or more, found -1"),
        ("temperature", SamplingParams(temperature=-0.5), r"must be 0 or more, found -0\.5"),
        ("temperature", SamplingParams(temperature=math.nan), "must be 0 or more, found nan"),
        ("top_p", SamplingParams(top_p=0.0), r"above 0 and at most 1, found 0\.0"),
        ("top_p", SamplingParams(top_p=1.5), r"above 0 and at most 1, found 1\.5"),
        ("top_k", SamplingParams(top_k=-1), r"must be 0 \(all tokens\) or more, found -1"),
        ("min_p", SamplingParams(min_p=1.5), r"min_p must be from 0 to 1, found 1\.5"),
        ("min_tokens", SamplingParams(4, min_tokens=5), "from 0 to max_tokens, found 5"),
        (
            "min_tokens",
            SamplingParams(min_tokens=1, stop_token_ids=frozenset(range(97))),
            "min_tokens may leave no token to choose; allow more",
        ),
        ("repetition_penalty", SamplingParams(repetition_penalty=0.0), "above 0 and finite"),
        ("presence_penalty", SamplingParams(presence_penalty=math.nan), "must be finite"),
        ("frequency_penalty", SamplingParams(frequency_penalty=math.inf), "must be finite"),
        (
            "logit_bias",
            SamplingParams(logit_bias=((97, 1.0),)),
            "adds 1.0 to token 97; the number must be finite",
        ),
        ("seed", SamplingParams(seed=-1), "seed must be 0 or more, found -1"),
        (
            "allowed_token_ids",
            SamplingParams(allowed_token_ids=np.array([1, 97])),
            "has the token 97; the",
        ),
        ("logprob_token_ids", SamplingParams(logprob_token_ids=(97,)), "has the token 97; the"),
        (
            "allowed_token_ids",
            SamplingParams(allowed_token_ids=np.array([], int)),
            "may leave no token to choose",
        ),
        (
            "bad_words",
            SamplingParams(bad_words=((1, 2),), allowed_token_ids=np.array([2])),
            "bad_words may leave no token to choose; allow more",
        ),
    ],
)
def test_impossible_sampling_is_refused(
    onnx_engine: SlotEngine, param: str, sampling: SamplingParams, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        onnx_engine.add(Request("a", prompt(2), sampling))
    assert refusal.value.param == param


def test_options_below_one_are_refused() -> None:
    with pytest.raises(EngineError, match="engine option slots must be at least 1, found 0"):
        SlotOptions(slots=0)
