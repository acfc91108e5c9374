"""Loading a model to be timed: by slots, or by the class that an engine's row names."""

from pathlib import Path

import pytest

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.engines.options import OnnxOptions
from sgate_serve.engines.timed import TimedSizes, TimedSlots
from sgate_serve.errors import EngineError
from sgate_serve.prepare import load_timed, timed_options
from tests.bench import stub_engine
from tests.small_llama import dense_llama, save

SIZES = TimedSizes(batch=3, model_len=20)


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return save(dense_llama(), tmp_path / "base")


def test_slot_engine_is_timed_by_its_slots(model: Checkpoint) -> None:
    timed = load_timed("torch", model, SIZES)
    assert isinstance(timed, TimedSlots)
    assert timed.max_model_len == 20


def test_row_with_a_timed_class_is_loaded_by_it(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = stub_engine.install(monkeypatch)
    timed = load_timed("stub", model, TimedSizes(3, 20, threads=2), ["--any", "7"])
    assert loads == [timed]
    assert loads[0] == stub_engine.StubTimed(model.folder, 3, 20, 2, ("--any", "7"))


def test_sizes_become_options_of_a_slot_engine() -> None:
    assert timed_options("onnx", SIZES, []) == OnnxOptions(slots=3, max_model_len=20)
    sizes = TimedSizes(3, 20, threads=2)
    assert timed_options("onnx", sizes, []) == OnnxOptions(3, 20, threads=2)
    assert timed_options("onnx", SIZES, ["--threads", "2"]) == OnnxOptions(3, 20, threads=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slots", "3"], "engine onnx: --slots has no place here: the largest of --batches"),
        (["--max-model-len", "64"], "--max-model-len has no place here: --context-tokens, --dec"),
        (["--prefill-chunk", "4"], "--prefill-chunk has no place here: a timed prompt is fed in"),
        (["--threads", "4"], r"--threads is given before `--` \(2\) and behind it \(4\)"),
        (["--gpus", "2"], "engine onnx: unrecognized arguments: --gpus 2"),
    ],
)
def test_arguments_that_the_sizes_decide_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        timed_options("onnx", TimedSizes(3, 20, threads=2), arguments)
