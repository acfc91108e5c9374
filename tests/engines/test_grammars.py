"""Requests with grammars on slot engines: each row follows its own, others notice nothing."""

from dataclasses import replace

import numpy as np
import pytest

from sgate_serve.engines.contract import Request, SamplingParams, TokenEvent
from sgate_serve.engines.grammar_mask import within_grammars
from sgate_serve.engines.sampling import Sampler
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.token_logprobs import token_logprobs
from tests.engines.drive import greedy, prompt, run
from tests.engines.ladder import FAILURE, VOCAB, Ladder, ladder
from tests.engines.test_logprobs import events_of
from tests.engines.uneven_model import UnevenModel

LOW, HIGH = tuple(range(10)), tuple(range(60, 97))
ALTERNATING = ladder(*((LOW, HIGH) * 4))


def follow(grammar: Ladder, **options: object) -> SamplingParams:
    return replace(greedy(20), grammar=grammar, **options)  # type: ignore[arg-type]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def answer(engine: SlotEngine, sampling: SamplingParams) -> tuple[list[int], str | None, int]:
    """Return the tokens of an answer, its finish reason, and the number of its events."""
    events = events_of(engine, Request("a", prompt(6), sampling))["a"]
    return tokens_of(events), events[-1].finish_reason, len(events)


def test_a_complete_grammar_ends_the_request_with_its_last_token(slot_engine: SlotEngine) -> None:
    for own in (follow(ALTERNATING), replace(follow(ALTERNATING), temperature=1.0, seed=1)):
        tokens, reason, num_events = answer(slot_engine, own)
        assert [token < 10 for token in tokens] == [True, False] * 4
        assert (reason, num_events) == ("stop", 8)


def test_greedy_tokens_are_the_best_of_those_allowed(
    slot_engine: SlotEngine, uneven: UnevenModel
) -> None:
    tokens, _, _ = answer(slot_engine, follow(ALTERNATING))
    for position, token in enumerate(tokens):
        logits = uneven.logits(np.array([*prompt(6), *tokens[:position]]))[-1]
        allowed = list(ALTERNATING.tokens[position])
        assert token == allowed[int(logits[allowed].argmax())]


def test_rows_with_and_without_grammars_do_not_meet(slot_engine: SlotEngine) -> None:
    requests = [Request("plain", prompt(5), greedy(12))]
    requests += [Request("low", prompt(6), follow(ladder(*(LOW,) * 12)))]
    requests += [Request("high", prompt(4), follow(ladder(*(HIGH,) * 12)))]
    alone = {name: value for each in requests for name, value in run(slot_engine, [each]).items()}
    assert run(slot_engine, requests) == alone
    assert run(slot_engine, requests, every=2) == alone
    assert alone["plain"].finish_reason == "length"


def test_stop_tokens_are_allowed_only_where_the_text_may_end(slot_engine: SlotEngine) -> None:
    grammar = ladder(*(LOW,) * 9, ends=(3, 5))
    stops = tuple(range(50, 60))
    pushed = tuple((token, 80.0) for token in stops)
    own = follow(grammar, stop_token_ids=frozenset(stops), logit_bias=pushed)
    tokens, reason, _ = answer(slot_engine, own)
    assert (len(tokens), reason) == (3, "stop")
    later, reason, _ = answer(slot_engine, replace(own, min_tokens=4))
    assert (len(later), reason) == (5, "stop")
    # Without stop tokens, as with `ignore_eos`, the text goes on to the end of the grammar.
    whole, reason, _ = answer(slot_engine, follow(grammar, logit_bias=pushed))
    assert (len(whole), reason) == (9, "stop")


def test_a_grammar_counts_for_more_than_min_tokens(slot_engine: SlotEngine) -> None:
    own = follow(ladder(LOW, LOW), stop_token_ids=frozenset({50}), min_tokens=10)
    assert answer(slot_engine, own)[1:] == ("stop", 2)
    # Where nothing but stop tokens may be written, one of them is.
    only_stop = follow(ladder(LOW, (50,), LOW), stop_token_ids=frozenset({50}), min_tokens=10)
    tokens, reason, _ = answer(slot_engine, only_stop)
    assert (len(tokens), reason) == (1, "stop")


def test_an_answer_that_is_cut_off_says_so_and_a_whole_one_does_not(
    slot_engine: SlotEngine,
) -> None:
    assert answer(slot_engine, follow(ALTERNATING, max_tokens=7))[1:] == ("length", 7)
    assert answer(slot_engine, follow(ALTERNATING, max_tokens=8))[1:] == ("stop", 8)


def test_biases_and_penalties_choose_among_the_allowed(slot_engine: SlotEngine) -> None:
    grammar = ladder(*(LOW,) * 8)
    biased = follow(grammar, logit_bias=((7, 50.0), (70, 100.0)))
    assert answer(slot_engine, biased)[0] == [7] * 8
    spread, _, _ = answer(slot_engine, follow(grammar, presence_penalty=1000.0))
    assert len(set(spread)) == 8
    assert set(spread) <= set(LOW)
    cut = replace(follow(grammar), temperature=2.0, top_k=50, top_p=0.99, min_p=0.001, seed=3)
    assert set(answer(slot_engine, cut)[0]) <= set(LOW)


def test_prompt_lookup_follows_the_grammar(onnx_engine: SlotEngine) -> None:
    start = (1, 2, 3, 70, 1, 2, 3, 70, 1, 2, 3)
    # What is drafted is right at first, then forbidden, and the grammar ends within a draft.
    grammar = ladder((70,), (1,), (2,), (3,), LOW, (70,), (1,), (2,))
    expected = run(onnx_engine, [Request("a", start, follow(grammar))])
    before = onnx_engine.stats().accepted_tokens
    looking = Request("a", start, follow(grammar, drafted_tokens=6))
    assert run(onnx_engine, [looking], looked_up=6) == expected
    assert onnx_engine.stats().accepted_tokens > before
    assert expected["a"].finish_reason == "stop"


def test_a_grammar_survives_preemption(slot_engine: SlotEngine) -> None:
    requests = [
        Request(f"r{seed}", prompt(12, seed), follow(ladder(*(LOW, HIGH) * 10)))
        for seed in range(4)
    ]
    expected = run(slot_engine, requests)
    slot_engine.runner.cache_tokens = 60
    assert run(slot_engine, requests) == expected
    assert [len(own.tokens) for own in expected.values()] == [20] * 4


def test_log_probabilities_are_among_the_allowed_tokens(slot_engine: SlotEngine) -> None:
    own = follow(ladder((3, 5), LOW), logprobs=4)
    first, second = events_of(slot_engine, Request("a", prompt(6), own))["a"]
    assert first.logprobs is not None and second.logprobs is not None
    top = dict(first.logprobs.top)
    assert top.keys() == {3, 5}
    assert np.exp([*top.values()]).sum() == pytest.approx(1)
    assert len(second.logprobs.top) == 4


def test_a_grammar_that_fails_ends_its_own_request_only(slot_engine: SlotEngine) -> None:
    failing = replace(ALTERNATING, fails_after=2)
    events = events_of(
        slot_engine,
        Request("fails", prompt(5), follow(failing)),
        Request("plain", prompt(4), greedy(6)),
    )
    assert len(events["fails"]) == 3
    assert events["fails"][-1] == TokenEvent("fails", None, "abort", error=FAILURE)
    assert len(tokens_of(events["plain"])) == 6
    assert not slot_engine.has_work()


def test_the_mask_leaves_the_callers_logits_alone() -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    samplers = [Sampler.start(greedy()), Sampler.start(follow(ladder(LOW)))]
    masked = within_grammars(logits, samplers)
    assert not logits.any()
    assert np.isfinite(masked).sum(axis=-1).tolist() == [VOCAB, len(LOW)]
    assert within_grammars(logits, samplers[:1]) is logits


@pytest.mark.parametrize("num", [1, 5, 200])
def test_forbidden_tokens_are_not_among_the_likeliest(num: int) -> None:
    row = np.full((1, VOCAB), -np.inf, np.float32)
    row[0, [4, 9]] = 0
    [found] = token_logprobs(row, [9], [num])
    assert [token for token, _ in found.top] == [4, 9][:num]
