"""A draft model: it changes no token, reads no more than the target, and holds no more."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sgate_serve.engines.contract import Request, SamplingParams
from sgate_serve.engines.drafter import Drafter
from sgate_serve.engines.runner import Runner, TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.slot_engine import SlotEngine
from tests.engines.conftest import DRAFTED, add_drafter, load_slots
from tests.engines.drive import Answer, greedy, prompt, run, step
from tests.engines.uneven_model import SIZES, UnevenModel


def drafter_of(engine: SlotEngine) -> Drafter:
    assert engine.drafter is not None
    return engine.drafter


def recorded(runner: Runner) -> list[dict[int, int]]:
    """Return the list that the tokens of each later call are added to, by slot."""
    calls: list[dict[int, int]] = []
    forward = runner.forward

    def recording(chunks: Sequence[TokenChunk]) -> Logits:
        calls.append({chunk.slot: len(chunk.tokens) for chunk in chunks})
        return forward(chunks)

    runner.forward = recording  # type: ignore[method-assign]
    return calls


def requests_of_all_kinds() -> list[Request]:
    """Return greedy and sampled ones, that stop, are scored, look up or get a single token."""
    sampled = SamplingParams(max_tokens=14, temperature=0.7, top_k=5)
    kinds = [
        greedy(20),
        greedy(1),
        replace(greedy(9), drafted_tokens=4),
        replace(greedy(12), logprobs=1, prompt_logprobs=0),
        replace(greedy(16, stop=range(0, 97, 9)), min_tokens=3),
        replace(greedy(15), repetition_penalty=1.3, logit_bias=((5, 2.0),)),
        *(replace(sampled, seed=seed) for seed in range(3)),
    ]
    # Choices of one prompt, and prompts that begin alike.
    prompts = [prompt(6), prompt(6), (*prompt(6), *prompt(9, 1)), prompt(23, 2), prompt(2, 3)]
    every = [
        Request(f"{which}.{number}", tokens, sampling)
        for number, sampling in enumerate(kinds)
        for which, tokens in enumerate(prompts)
    ]
    return every[::2]


@pytest.mark.parametrize(("cache", "every"), [(144, 0), (60, 1), (50, 2)])
def test_drafts_change_no_token_and_hold_no_more_than_the_target(
    drafted_engine: SlotEngine, uneven: UnevenModel, cache: int, every: int
) -> None:
    expected = run(load_slots(drafted_engine.name, uneven), requests_of_all_kinds(), looked_up=4)
    drafted_engine.runner.cache_tokens = cache
    queue, answers = requests_of_all_kinds(), {name: Answer() for name in expected}
    to_abort, num_steps = ["2.0", "1.3", "3.5"], 0
    while queue or drafted_engine.has_work():
        while queue and (not every or num_steps % every == 0):
            drafted_engine.add(queue.pop(0))
            if every:
                break
        step(drafted_engine, answers, looked_up=4)
        num_steps += 1
        if to_abort and answers[to_abort[0]].tokens:
            drafted_engine.abort(to_abort.pop(0))
        check_held(drafted_engine)
    assert {n for n in expected if answers[n] != expected[n]} <= {"2.0", "1.3", "3.5"}
    stats = drafted_engine.stats()
    assert (stats.preemptions > 0) == (cache < 144)
    assert stats.accepted_tokens <= stats.draft_tokens and stats.drafts > 0


def check_held(engine: SlotEngine) -> None:
    """A draft model's slot holds no more than the target's, and an empty one nothing."""
    targets = {sequence.slot: sequence.num_cached for sequence in engine._running.values()}
    idle = engine._slots.idle
    targets |= {slot: idle.length(slot) for slot in range(SIZES.slots or 0) if slot in idle}
    for slot, held in enumerate(drafter_of(engine)._held):
        assert held <= targets.get(slot, 0)


def test_a_draft_that_is_right_takes_one_call(onnx_engine: SlotEngine, uneven: UnevenModel) -> None:
    add_drafter(onnx_engine, uneven.folders, SIZES)
    calls, drafting = recorded(onnx_engine.runner), recorded(drafter_of(onnx_engine).runner)
    (answer,) = run(onnx_engine, [Request("a", prompt(5), greedy(14))]).values()
    assert answer.tokens == uneven.greedy(prompt(5), 14)
    # The first token comes with the prompt, then 3 drafted ones and one more in each step.
    assert calls == [{0: 5}, *[{0: 1 + DRAFTED}] * 3, {0: 1}]
    # Of a draft the last token is read after it was right. One more token needs no draft.
    assert drafting == [{0: 5}, *[{0: 1}] * 3, {0: 2}, {0: 1}, {0: 1}, {0: 2}, {0: 1}, {0: 1}]
    stats = onnx_engine.stats()
    assert (stats.drafts, stats.draft_tokens, stats.accepted_tokens) == (3, 9, 9)


def test_prompts_are_read_in_the_chunks_of_the_target(drafted_engine: SlotEngine) -> None:
    target = recorded(drafted_engine.runner)
    own = recorded(drafter_of(drafted_engine).runner)
    for number, length in enumerate((17, 4, 9)):
        drafted_engine.add(Request(f"{number}", prompt(length, number), greedy(1 + 5 * number)))
    while drafted_engine.has_work():
        drafted_engine.step()
    for slot, length in ((1, 4), (2, 9)):
        read = [[call[slot] for call in calls if slot in call] for calls in (target, own)]
        num_chunks = np.cumsum(read[0]).tolist().index(length) + 1
        assert read[0][:num_chunks] == read[1][:num_chunks]
    # After the first request's only token nothing is drafted.
    assert not any(0 in call for call in own)


def test_a_draft_model_that_lags_behind_catches_up_in_chunks(
    onnx_engine: SlotEngine, uneven: UnevenModel
) -> None:
    add_drafter(onnx_engine, uneven.folders, SIZES)
    own = recorded(drafter_of(onnx_engine).runner)
    tokens: list[int | None] = []
    onnx_engine.add(Request("a", prompt(20), greedy(26)))
    # For the first tokens there is room, but for no draft.
    onnx_engine.runner.cache_tokens = 22
    while len(tokens) < 2:
        tokens += [event.token for event in onnx_engine.step()]
    drafter_of(onnx_engine).release(0)
    onnx_engine.runner.cache_tokens, before = 144, len(own)
    while onnx_engine.has_work():
        tokens += [event.token for event in onnx_engine.step()]
    assert tokens == uneven.greedy(prompt(20), 26)
    # While it reads 22 tokens by chunks, the target chooses 5 more, one in each step.
    assert [call[0] for call in own[before:]][:8] == [5, 5, 5, 5, 5, 2, 1, 1]


def test_a_smaller_cache_of_the_draft_model_bounds_both(
    onnx_engine: SlotEngine, uneven: UnevenModel
) -> None:
    runner = load_slots(onnx_engine.name, uneven).runner
    runner.cache_tokens = 60
    onnx_engine.draft_with(Drafter(runner, DRAFTED, onnx_engine.prefill_chunk))
    requests = [Request(f"{seed}", prompt(12, seed), greedy(25)) for seed in range(4)]
    for request in requests:
        onnx_engine.add(request)
    most = 0
    while onnx_engine.has_work():
        onnx_engine.step()
        most = max(most, sum(drafter_of(onnx_engine)._held))
    assert 40 < most <= 60


def test_a_draft_model_shares_what_the_target_shares(
    onnx_engine: SlotEngine, uneven: UnevenModel
) -> None:
    add_drafter(onnx_engine, uneven.folders, SIZES)
    start = prompt(10)
    (answer,) = run(onnx_engine, [Request("a", start, greedy(4))]).values()
    own = recorded(drafter_of(onnx_engine).runner)
    turn = (*start, *answer.tokens, 5, 6)
    # The next turn goes on in its slot, and one that shares a part has another.
    for name, tokens in (("turn", turn), ("part", (*start[:8], *prompt(6, 3)))):
        own.clear()
        (answer,) = run(onnx_engine, [Request(name, tokens, greedy(3))]).values()
        assert answer.tokens == uneven.greedy(tokens, 3)
        assert sum(own[0].values()) <= 6
