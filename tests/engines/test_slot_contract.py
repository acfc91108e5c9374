"""What engines of slots owe besides: exact numbers of what a step feeds, holds and frees."""

from sgate_serve.engines.base import EngineStats, Request, TokenEvent
from sgate_serve.engines.scheduler import SlotEngine
from tests.engines.drive import greedy, prompt
from tests.engines.test_contract import ragged_requests
from tests.engines.uneven_model import SIZES, UnevenModel
from tests.small_llama import reference_greedy


def test_a_short_prompt_is_answered_in_the_step_that_feeds_it(
    slot_engine: SlotEngine, uneven: UnevenModel
) -> None:
    (first,) = reference_greedy(uneven.oracle, prompt(3), 1)
    slot_engine.add(Request("a", prompt(3), greedy(8, stop=[first])))
    assert slot_engine.step() == [TokenEvent("a", None, "stop")]
    assert not slot_engine.has_work()


def test_abort_frees_the_slot_at_once(slot_engine: SlotEngine) -> None:
    for request in ragged_requests():
        slot_engine.add(request)
    for _ in range(4):
        slot_engine.step()
    assert (slot_engine.stats().num_running, slot_engine.stats().num_waiting) == (2, 4)
    slot_engine.abort("r3")  # being fed
    slot_engine.abort("r7")  # waiting
    assert (slot_engine.stats().num_running, slot_engine.stats().num_waiting) == (1, 3)


def test_stats_count_slots_queue_and_cached_tokens(slot_engine: SlotEngine) -> None:
    assert slot_engine.stats() == EngineStats(0, 0, 0.0)
    for request in ragged_requests()[1:6]:
        slot_engine.add(request)
    assert slot_engine.stats() == EngineStats(0, 5, 0.0)
    slot_engine.step()  # feeds 4 tokens of r1
    assert slot_engine.stats() == EngineStats(3, 2, 4 / (3 * 48))
    slot_engine.step()  # feeds 5 tokens of r2, which ends there; decodes r1
    assert slot_engine.stats() == EngineStats(2, 2, 5 / (3 * 48))


def test_sizes_are_those_asked_for(slot_engine: SlotEngine) -> None:
    assert slot_engine.runner.num_slots == SIZES.slots
    assert slot_engine.prefill_chunk == SIZES.prefill_chunk
