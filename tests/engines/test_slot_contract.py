"""The contract of slot engines: exact numbers of tokens that a step adds, holds and frees."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sgate_serve.engines.contract import Request, TokenEvent
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.slots import WORTH_WAITING
from tests.engines.drive import Answer, greedy, load_of, prompt, run, step
from tests.engines.test_contract import ragged_requests
from tests.engines.uneven_model import SIZES, UnevenModel
from tests.small_llama import random_tokens


def test_a_short_prompt_is_answered_in_the_step_of_its_prefill(
    slot_engine: SlotEngine, uneven: UnevenModel
) -> None:
    (first,) = uneven.greedy(prompt(3), 1)
    slot_engine.add(Request("a", prompt(3), greedy(8, stop=[first])))
    assert slot_engine.step() == [TokenEvent("a", None, "stop", stop_token=first)]
    assert not slot_engine.has_work()


def test_abort_frees_the_slot_at_once(slot_engine: SlotEngine) -> None:
    for request in ragged_requests():
        slot_engine.add(request)
    for _ in range(4):
        slot_engine.step()
    running, waiting = slot_engine.stats().num_running, slot_engine.stats().num_waiting
    assert (running, waiting) == (3, 3)
    slot_engine.abort("r3")  # in prefill
    slot_engine.abort("r7")  # waiting
    assert (slot_engine.stats().num_running, slot_engine.stats().num_waiting) == (2, 2)


def test_stats_count_slots_queue_and_cached_tokens(slot_engine: SlotEngine) -> None:
    assert load_of(slot_engine) == (0, 0, 0.0)
    for request in ragged_requests()[1:6]:
        slot_engine.add(request)
    assert load_of(slot_engine) == (0, 5, 0.0)
    slot_engine.step()  # of a chunk of 5, r1 gets 3 of its 4 tokens and r2 the rest
    assert load_of(slot_engine) == (3, 2, (3 + 2) / (3 * 48))
    slot_engine.step()  # r1 gets its last one, r2 its last 3, which end it, and r3 one
    assert load_of(slot_engine) == (2, 2, (4 + 1) / (3 * 48))
    slot_engine.step()  # r1 generates; r3 gets 3 and r4, which takes the free slot, 2
    assert load_of(slot_engine) == (3, 1, (5 + 4 + 2) / (3 * 48))


def test_a_chunk_and_running_streams_share_one_call(slot_engine: SlotEngine) -> None:
    lengths: list[list[int]] = []
    forward = slot_engine.runner.forward

    def recording(chunks: Sequence[TokenChunk]) -> Logits:
        lengths.append([len(chunk.tokens) for chunk in chunks])
        return forward(chunks)

    slot_engine.runner.forward = recording  # type: ignore[method-assign]
    for name, length in (("a", 2), ("b", 3), ("c", 7)):
        slot_engine.add(Request(name, prompt(length), greedy(4)))
    for _ in range(3):
        slot_engine.step()
    assert lengths == [[2, 3], [1, 1, 5], [1, 1, 2]]


def test_a_full_cache_makes_the_newest_wait_and_changes_no_token(
    slot_engine: SlotEngine, uneven: UnevenModel
) -> None:
    slot_engine.runner.cache_tokens = 60
    requests = [Request(f"r{seed}", prompt(12, seed), greedy(25)) for seed in range(4)]
    most = 0
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        slot_engine.add(request)
    while slot_engine.has_work():
        step(slot_engine, answers)
        most = max(most, slot_engine.stats().num_running)
        assert slot_engine.stats().kv_cache_usage <= 1
    assert most == 3
    for request in requests:
        expected = uneven.greedy(request.prompt, 25)
        assert answers[request.request_id] == Answer(expected, "length")


def test_prompt_logprobs_come_once_even_after_preemption(slot_engine: SlotEngine) -> None:
    before, admitted = slot_engine.stats().preemptions, set[tuple[str, float | None]]()
    slot_engine.runner.cache_tokens = 50
    scored = replace(greedy(20), prompt_logprobs=0)
    for name in ("first", "second"):
        slot_engine.add(Request(name, prompt(20), scored))
    lengths: dict[str, list[int]] = {"first": [], "second": []}
    while slot_engine.has_work():
        for event in slot_engine.step():
            lengths[event.request_id].append(len(event.prompt_logprobs))
            admitted.add((event.request_id, event.admitted))
    assert lengths == {name: [20] + [0] * 19 for name in lengths}
    assert slot_engine.stats().preemptions > before
    # What is preempted was admitted when it was first.
    assert len(admitted) == 2 and None not in {time for _, time in admitted}


def test_what_a_slot_holds_is_not_processed_again(
    onnx_engine: SlotEngine, uneven: UnevenModel
) -> None:
    fed: list[int] = []
    forward = onnx_engine.runner.forward

    def recording(chunks: Sequence[TokenChunk]) -> Logits:
        fed.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    onnx_engine.runner.forward = recording  # type: ignore[method-assign]
    cached = {}

    def answer(name: str, tokens: tuple[int, ...], count: int = 2) -> int:
        """Return the number of tokens that the runner was fed for a request."""
        before = sum(fed)
        onnx_engine.add(Request(name, tokens, greedy(count)))
        found = []
        while onnx_engine.has_work():
            for event in onnx_engine.step():
                found.append(event.token)
                cached[name] = event.num_cached
        assert found == uneven.greedy(tokens, count)
        return sum(fed) - before

    start = prompt(10)
    turn = (*start, *uneven.greedy(start, 2), 5, 6)
    # Of two new tokens the last one is never fed.
    assert answer("first", start) == 10 + 1
    assert answer("next turn", turn) == 14 - 11 + 1
    assert answer("the same", turn) == 1 + 1
    assert answer("a part", start[:4]) == 1 + 1
    assert answer("another", prompt(6, 3)) == 6 + 1
    assert cached == {"first": 0, "next turn": 11, "the same": 13, "a part": 3, "another": 0}
    stats = onnx_engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (10 + 14 + 14 + 4 + 6, 11 + 13 + 3)
    # Choices of one prompt arrive together, and wait for the one that reads it.
    before, choices = sum(fed), prompt(30, 7)
    answers = run(onnx_engine, [Request(str(n), choices, greedy(2)) for n in range(3)])
    assert all(one.tokens == uneven.greedy(choices, 2) for one in answers.values())
    assert sum(fed) - before < 30 + 2 * WORTH_WAITING + 3 * 1
    # Log-probabilities of a prompt need every position, and no slot is left to keep all.
    onnx_engine.add(Request("scored", start, replace(greedy(1), prompt_logprobs=0)))
    (event,) = [event for _ in range(2) for event in onnx_engine.step()]
    assert (len(event.prompt_logprobs), event.num_cached) == (10, 0)


def test_what_was_drafted_right_takes_one_call(
    onnx_engine: SlotEngine, uneven: UnevenModel
) -> None:
    # After a while the model repeats itself, so that some drafts are right.
    start = (*prompt(5), *uneven.greedy(prompt(5), 20))
    onnx_engine.add(Request("a", start, replace(greedy(15), drafted_tokens=4)))
    found, num_calls = [], 0
    while onnx_engine.has_work():
        found += [event.token for event in onnx_engine.step()]
        num_calls += bool(found)
    assert found == uneven.greedy(start, 15)
    stats = onnx_engine.stats()
    # The first token comes with the prompt.
    assert num_calls == 15 - stats.accepted_tokens
    assert 0 < stats.accepted_tokens <= stats.draft_tokens <= 4 * stats.drafts


def test_idle_slots_give_way_to_running_ones(slot_engine: SlotEngine, uneven: UnevenModel) -> None:
    slot_engine.runner.cache_tokens = 60
    rng = np.random.default_rng(0)
    shared = [prompt(length, seed) for seed, length in enumerate((6, 9, 13))]
    requests = [
        Request(str(n), (*shared[rng.integers(3)], *prompt(int(rng.integers(1, 6)), n)), greedy(20))
        for n in range(12)
    ]
    answers = {request.request_id: Answer() for request in requests}
    queue = list(requests)
    while queue or slot_engine.has_work():
        if queue and rng.random() < 0.3:
            slot_engine.add(queue.pop())
        step(slot_engine, answers)
        held = slot_engine.stats().kv_cache_usage * 60 + slot_engine._slots.idle.num_tokens
        assert held <= 60
    for request in requests:
        assert answers[request.request_id].tokens == uneven.greedy(request.prompt, 20)
    tokens = random_tokens(20)
    error = np.abs(slot_engine.logits(tokens) - uneven.logits(tokens)).max()
    assert error < 1e-4
    assert not slot_engine._slots.idle


def test_sizes_are_those_asked_for(slot_engine: SlotEngine) -> None:
    assert slot_engine.runner.num_slots == SIZES.slots
    assert slot_engine.prefill_chunk == SIZES.prefill_chunk
