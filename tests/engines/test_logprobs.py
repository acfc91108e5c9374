"""Log-probabilities of tokens and of prompts on every engine, against the oracle's log-softmax."""

import numpy as np
import pytest
import torch

from sgate_serve.engines.contract import Request, SamplingParams, TokenEvent, TokenLogprobs
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.token_logprobs import token_logprobs
from tests.engines.drive import prompt
from tests.engines.uneven_model import SIZES, LoadEngine, UnevenModel


@pytest.fixture
def engine(load: LoadEngine) -> SlotEngine:
    engine = load(SIZES)
    if not isinstance(engine, SlotEngine):
        pytest.skip("this engine refuses logprobs; its own server gives them")
    return engine


def events_of(engine: SlotEngine, *requests: Request) -> dict[str, list[TokenEvent]]:
    for request in requests:
        engine.add(request)
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in requests}
    while engine.has_work():
        for event in engine.step():
            events[event.request_id].append(event)
    return events


def check_logprobs(logprobs: TokenLogprobs, expected: torch.Tensor, num_top: int) -> None:
    assert logprobs.logprob == pytest.approx(float(expected[logprobs.token]), abs=1e-4)
    assert logprobs.rank == int((expected >= expected[logprobs.token]).sum())
    # Of tokens that are equally likely, as after one whose embedding is zero, torch takes any.
    values, top = expected.topk(num_top).values, dict(logprobs.top)
    np.testing.assert_allclose(list(top.values()), values, atol=1e-4)
    np.testing.assert_allclose(expected[list(top)], values, atol=1e-4)


def reference(served: UnevenModel, tokens: list[int]) -> torch.Tensor:
    logits = torch.tensor(served.logits(np.array(tokens)))
    return logits.double().log_softmax(-1)


def test_logprobs_of_new_tokens_are_of_raw_logits_and_only_on_request(
    engine: SlotEngine, served: UnevenModel
) -> None:
    bias = ((5, 50.0),)
    asking = SamplingParams(5, temperature=0.7, seed=1, top_k=9, logit_bias=bias, logprobs=3)
    events = events_of(
        engine,
        Request("asks", prompt(6), asking),
        Request("plain", prompt(4), SamplingParams(5, seed=1)),
        Request("chosen", prompt(4), SamplingParams(5, seed=1, logprobs=0)),
    )
    tokens = [event.token for event in events["asks"] if event.token is not None]
    expected = reference(served, [*prompt(6), *tokens])
    for position, event in enumerate(events["asks"]):
        assert event.logprobs is not None and event.logprobs.token == event.token
        check_logprobs(event.logprobs, expected[5 + position], 3)
    assert all(event.logprobs is None for event in events["plain"])
    assert all(event.logprobs is not None and not event.logprobs.top for event in events["chosen"])


def test_a_stop_token_has_its_logprobs(engine: SlotEngine, served: UnevenModel) -> None:
    bias, ends = ((5, 50.0),), frozenset({5})
    asking = SamplingParams(9, logit_bias=bias, logprobs=2, stop_token_ids=ends, min_tokens=1)
    first, last = events_of(engine, Request("a", prompt(6), asking))["a"]
    assert first.token is not None and (last.token, last.stop_token) == (None, 5)
    assert last.logprobs is not None and last.logprobs.token == 5
    check_logprobs(last.logprobs, reference(served, [*prompt(6), first.token])[-1], 2)


@pytest.mark.parametrize("length", [1, 5, 17, 48])
def test_prompt_logprobs_cover_all_chunks(
    engine: SlotEngine, served: UnevenModel, length: int
) -> None:
    sampling = SamplingParams(0, prompt_logprobs=2)
    events = events_of(
        engine,
        Request("scored", prompt(length), sampling),
        Request("beside", prompt(3), SamplingParams(6, temperature=0)),
    )
    [event] = events["scored"]
    assert (event.token, event.finish_reason) == (None, "length")
    assert [each.token for each in event.prompt_logprobs] == list(prompt(length))
    assert event.prompt_logprobs[0] == TokenLogprobs(prompt(length)[0], None)
    expected = reference(served, list(prompt(length)))
    for position, each in enumerate(event.prompt_logprobs[1:]):
        check_logprobs(each, expected[position], 2)
    assert not any(event.prompt_logprobs for event in events["beside"])


def test_prompt_logprobs_do_not_change_the_completion(engine: SlotEngine) -> None:
    plain = SamplingParams(6, temperature=0)
    scored = SamplingParams(6, temperature=0, prompt_logprobs=0, logprobs=0)
    events = events_of(engine, Request("a", prompt(13), plain), Request("b", prompt(13), scored))
    assert [event.token for event in events["a"]] == [event.token for event in events["b"]]
    assert [len(event.prompt_logprobs) for event in events["b"]] == [13, 0, 0, 0, 0, 0]


def test_likeliest_tokens_are_ordered_and_ties_go_to_the_lowest_id() -> None:
    logits = np.array([[1, 2, 2, 0, 2], [0, 0, 0, 0, 9]], np.float32)
    tied, few = token_logprobs(logits, [0, 4], [2, 9])
    assert [token for token, _ in tied.top] == [1, 2]
    assert [token for token, _ in few.top] == [4, 0, 1, 2, 3]
    assert few.top[0][1] == few.logprob


def test_chosen_tokens_come_with_the_new_one_instead_of_the_likeliest(
    engine: SlotEngine, served: UnevenModel
) -> None:
    asking = SamplingParams(4, temperature=1, seed=1, logprobs=3, logprob_token_ids=(9, 2, 9))
    plain = SamplingParams(4, temperature=1, seed=1, logprobs=3)
    events = events_of(engine, Request("a", prompt(6), asking), Request("b", prompt(6), plain))
    tokens = [event.token for event in events["a"] if event.token is not None]
    expected = reference(served, [*prompt(6), *tokens])[5:]
    for row, event, beside in zip(expected[:-1], *events.values(), strict=True):
        assert event.logprobs is not None and event.token == beside.token
        ids = [token for token, _ in event.logprobs.top]
        assert set(ids) == {2, 9, event.token} and len(ids) == len(set(ids))
        np.testing.assert_allclose([value for _, value in event.logprobs.top], row[ids], atol=1e-4)
        assert ids == sorted(ids, key=lambda token: -float(row[token]))
        assert beside.logprobs is not None and len(beside.logprobs.top) == 3
