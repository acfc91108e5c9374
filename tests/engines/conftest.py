"""The uneven model, written once per session, and the engines that load it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.model_protocols import LoadedEngine
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.table import ENGINES, ONNX, VLLM, load_engine
from tests.engines.uneven_model import (
    FAMILIES,
    SIZES,
    LoadEngine,
    UnevenModel,
    write_family,
    write_uneven_llama,
)
from tests.installed import require_engine

LLAMA = "llama"
# Every engine on one model, the embedded one on all families; for vLLM see tests/engines/vllm.
CASES = [
    *(
        pytest.param((name, LLAMA), marks=pytest.mark.vllm if name == VLLM else (), id=name)
        for name in sorted(ENGINES)
    ),
    *(pytest.param((ONNX, family), id=f"{ONNX}-{family}") for family in FAMILIES),
]


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_uneven_llama(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The engine and the family of a contract test."""
    name, family = request.param
    require_engine(name)
    return name, family


@pytest.fixture(scope="module")
def served(
    case: tuple[str, str], uneven: UnevenModel, tmp_path_factory: pytest.TempPathFactory
) -> UnevenModel:
    """The model that `load` and `engine` serve."""
    _, family = case
    return uneven if family == LLAMA else write_family(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def load(case: tuple[str, str], served: UnevenModel) -> Iterator[LoadEngine]:
    """Load the model on the engine, with the sizes that the test needs.

    One engine serves all tests of a module with the same sizes, and is closed before the next one
    is loaded: vLLM's process groups belong to this process, not to an engine.
    """
    name, _ = case
    opened: dict[SlotOptions, LoadedEngine] = {}

    def close() -> None:
        for options in list(opened):
            opened.pop(options).close()

    def load(options: SlotOptions) -> LoadedEngine:
        # vLLM takes its threads from the environment.
        options = replace(options, threads=None) if name == VLLM else options
        if options not in opened:
            close()
            opened[options] = load_engine(name, served.folders[ENGINES[name].reads], options)
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
