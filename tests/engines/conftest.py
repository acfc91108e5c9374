"""The uneven model, written once per session, and the engines that load it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sgate_serve.engines import ENGINES, ONNX, VLLM, load_engine
from sgate_serve.engines.base import LoadedEngine
from sgate_serve.engines.options import SlotOptions
from sgate_serve.engines.scheduler import SlotEngine
from tests.engines.uneven_model import SIZES, LoadEngine, UnevenModel, write_uneven_model
from tests.installed import require_engine

EVERY_ENGINE = [
    pytest.param(name, marks=pytest.mark.vllm if name == VLLM else ()) for name in sorted(ENGINES)
]


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_uneven_model(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def load(request: pytest.FixtureRequest, uneven: UnevenModel) -> Iterator[LoadEngine]:
    """Load the uneven model on each engine in turn, with the sizes that the test wants.

    An engine serves all tests of a module that want the same sizes, and is closed before the next
    one is loaded: vLLM's groups of processes are this process's, not an engine's.
    """
    name = str(request.param)
    require_engine(name)
    opened: dict[SlotOptions, LoadedEngine] = {}

    def close() -> None:
        for options in list(opened):
            opened.pop(options).close()

    def load(options: SlotOptions) -> LoadedEngine:
        # vLLM has its threads from the environment.
        options = replace(options, threads=None) if name == VLLM else options
        if options not in opened:
            close()
            opened[options] = load_engine(name, uneven.folders[ENGINES[name].reads], options)
        return opened[options]

    yield load
    close()


@pytest.fixture
def engine(load: LoadEngine) -> Iterator[LoadedEngine]:
    """An idle engine; it is idle again for the next test, whatever this one leaves."""
    engine = load(SIZES)
    yield engine
    while engine.has_work():
        engine.step()


@pytest.fixture(params=[ONNX, "torch"])
def slot_engine(request: pytest.FixtureRequest, uneven: UnevenModel) -> SlotEngine:
    require_engine(str(request.param))
    return load_slots(str(request.param), uneven)


@pytest.fixture
def onnx_engine(uneven: UnevenModel) -> SlotEngine:
    return load_slots(ONNX, uneven)


def load_slots(name: str, uneven: UnevenModel) -> SlotEngine:
    engine = load_engine(name, uneven.folders[ENGINES[name].reads], SIZES)
    assert isinstance(engine, SlotEngine)
    return engine
