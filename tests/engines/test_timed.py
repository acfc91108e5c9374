"""Timing a slot engine: its calls, their tokens, and that slots are empty afterwards."""

from collections.abc import Sequence

import numpy as np
import pytest

from sgate_serve.engines.runner import TokenChunk
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.timed import TimedSlotEngine
from sgate_serve.onnx_format.precision import PRECISIONS


class RecordingRunner:
    """Records each call and checks every token id against the vocabulary."""

    num_slots, max_model_len, cache_tokens, vocab_size = 4, 32, 128, 7
    precision = PRECISIONS["int4"]
    shares_prefixes = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.prompts: list[Sequence[int]] = []
        self.num_held = [0] * self.num_slots

    def forward(self, chunks: Sequence[TokenChunk]) -> Logits:
        assert all(0 <= token < self.vocab_size for chunk in chunks for token in chunk.tokens)
        if len(chunks[0].tokens) > 1:
            (chunk,) = chunks
            self.calls.append(("prefill", chunk.slot))
            self.prompts.append(chunk.tokens)
        else:
            assert [self.num_held[chunk.slot] >= 5 for chunk in chunks] == [True] * len(chunks)
            self.calls.append(("decode", [chunk.slot for chunk in chunks]))
        for chunk in chunks:
            self.num_held[chunk.slot] += len(chunk.tokens)
        return np.zeros((len(chunks), self.vocab_size), np.float32)

    def share(self, source: int, slot: int, length: int) -> None:
        raise AssertionError("not asked for")

    def release(self, slot: int) -> None:
        self.calls.append(("release", slot))
        self.num_held[slot] = 0


class StubEngine(SlotEngine):
    name, version = "stub", "0"


def timed_by(runner: RecordingRunner) -> TimedSlotEngine:
    return TimedSlotEngine(StubEngine(runner, prefill_chunk=1))


@pytest.fixture
def runner() -> RecordingRunner:
    return RecordingRunner()


def test_decode_fills_each_row_and_adds_a_token_a_step(runner: RecordingRunner) -> None:
    seconds = timed_by(runner).decode_seconds(2, 5, 3, np.random.default_rng(0))
    assert seconds > 0
    assert runner.calls == [
        *[("prefill", 0), ("prefill", 1)],
        *[("decode", [0, 1])] * 3,
        *[("release", 0), ("release", 1)],
    ]
    assert [len(prompt) for prompt in runner.prompts] == [5, 5]


def test_prefill_is_one_call(runner: RecordingRunner) -> None:
    timed = timed_by(runner)
    assert timed.max_model_len == 32
    assert timed.prefill_seconds(20, np.random.default_rng(0)) > 0
    assert runner.calls == [("prefill", 0), ("release", 0)]
    assert len(runner.prompts[0]) == 20


def test_only_decode_steps_are_timed(
    runner: RecordingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that counts calls of the runner instead of seconds.
    monkeypatch.setattr("time.perf_counter_ns", lambda: 10**9 * len(runner.calls))
    timed, generator = timed_by(runner), np.random.default_rng(0)
    assert timed.decode_seconds(4, 5, 3, generator) == 3
    assert timed.prefill_seconds(9, generator) == 1


def test_tokens_are_the_generators(runner: RecordingRunner) -> None:
    timed = timed_by(runner)
    for seed in (0, 0, 1):
        timed.prefill_seconds(20, np.random.default_rng(seed))
    first, again, other = runner.prompts
    assert first == again != other
    # One generator continues from run to run, so no prompt is timed twice.
    generator = np.random.default_rng(0)
    timed.prefill_seconds(20, generator)
    timed.prefill_seconds(20, generator)
    assert runner.prompts[3] == first != runner.prompts[4]


def test_close_closes_the_engine(runner: RecordingRunner) -> None:
    engine = StubEngine(runner, prefill_chunk=1)
    TimedSlotEngine(engine).close()
    assert not hasattr(engine, "runner")


def test_identity_is_that_of_the_engine(runner: RecordingRunner) -> None:
    timed = timed_by(runner)
    assert (timed.name, timed.version, timed.precision) == ("stub", "0", PRECISIONS["int4"])
