"""The uneven model, written once per session, and the engines that load it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sgate_serve.engines.drafter import Drafter
from sgate_serve.engines.engine_options import OnnxOptions, SlotOptions
from sgate_serve.engines.model_protocols import LoadedEngine
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.engines.table import ENGINES, ONNX, VLLM, load_engine
from tests.engines.uneven_model import (
    CHILD,
    FAMILIES,
    RECURRENT,
    SIZES,
    STRANGER,
    Case,
    LoadEngine,
    UnevenModel,
    with_int8_cache,
    write_drafts,
    write_family,
    write_uneven_llama,
)
from tests.installed import require_engine

LLAMA, TORCH = "llama", "torch"
# Every engine on one model, the embedded one on all families; for vLLM see tests/engines/vllm.
CASES = [
    *(
        pytest.param(Case(name, LLAMA), marks=pytest.mark.vllm if name == VLLM else (), id=name)
        for name in sorted(ENGINES)
    ),
    *(pytest.param(Case(ONNX, family), id=f"{ONNX}-{family}") for family in FAMILIES),
    pytest.param(Case(TORCH, RECURRENT), id=f"{TORCH}-{RECURRENT}"),
    pytest.param(Case(VLLM, RECURRENT), marks=pytest.mark.vllm, id=f"{VLLM}-{RECURRENT}"),
    *(
        pytest.param(Case(name, LLAMA, draft), id=f"{name}-{draft}")
        for name, draft in ((ONNX, CHILD), (ONNX, STRANGER), (TORCH, CHILD))
    ),
    *(
        pytest.param(Case(ONNX, family, draft, int8_cache=True), id=f"{ONNX}-{name}-int8-cache")
        for name, family, draft in (
            (LLAMA, LLAMA, None),
            ("gemma2", "gemma2", None),
            (RECURRENT, RECURRENT, None),
            (CHILD, LLAMA, CHILD),
        )
    ),
]
# What a draft model drafts at a time.
DRAFTED = 3


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_uneven_llama(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    require_engine(case.engine)
    return case


@pytest.fixture(scope="session")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The folders of the models that draft, by name and by what an engine reads."""
    return write_drafts(tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="module")
def served(
    case: Case, uneven: UnevenModel, tmp_path_factory: pytest.TempPathFactory
) -> UnevenModel:
    """The model that `load` and `engine` serve."""
    model = uneven
    if case.family != LLAMA:
        model = write_family(case.family, tmp_path_factory.mktemp(case.family))
    return with_int8_cache(model, tmp_path_factory.mktemp("int8")) if case.int8_cache else model


@pytest.fixture(scope="module")
def load(
    case: Case, served: UnevenModel, drafts: dict[str, dict[str, Path]]
) -> Iterator[LoadEngine]:
    """Load the model on the engine, with the sizes that the test needs.

    One engine serves all tests of a module with the same sizes, and is closed before the next one
    is loaded: vLLM's process groups belong to this process, not to an engine.
    """
    name = case.engine
    opened: dict[SlotOptions, LoadedEngine] = {}

    def close() -> None:
        for options in list(opened):
            opened.pop(options).close()

    def load(options: SlotOptions) -> LoadedEngine:
        # vLLM takes its threads from the environment.
        options = replace(options, threads=None) if name == VLLM else options
        if options not in opened:
            close()
            own = (
                OnnxOptions(**vars(options), kv_cache_dtype="int8") if case.int8_cache else options
            )
            opened[options] = load_engine(name, served.folders[ENGINES[name].reads], own)
            if case.draft is not None:
                add_drafter(opened[options], drafts[case.draft], options)
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


@pytest.fixture(params=[ONNX, TORCH])
def slot_engine(request: pytest.FixtureRequest, uneven: UnevenModel) -> SlotEngine:
    require_engine(str(request.param))
    return load_slots(str(request.param), uneven)


@pytest.fixture(params=[(ONNX, CHILD), (ONNX, STRANGER), (TORCH, CHILD)], ids="-".join)
def drafted_engine(
    request: pytest.FixtureRequest, uneven: UnevenModel, drafts: dict[str, dict[str, Path]]
) -> SlotEngine:
    name, draft = request.param
    require_engine(name)
    engine = load_slots(name, uneven)
    add_drafter(engine, drafts[draft], SIZES)
    return engine


@pytest.fixture
def onnx_engine(uneven: UnevenModel) -> SlotEngine:
    return load_slots(ONNX, uneven)


def add_drafter(engine: LoadedEngine, folders: Mapping[str, Path], options: SlotOptions) -> None:
    """Let a model draft for a slot engine that was loaded with the same options.

    Steps of a single token have no room for a draft.
    """
    assert isinstance(engine, SlotEngine)
    count = min(DRAFTED, engine.prefill_chunk - 1)
    if count:
        own = load_engine(engine.name, folders[ENGINES[engine.name].reads], options)
        assert isinstance(own, SlotEngine)
        engine.draft_with(Drafter(own.runner, count, engine.prefill_chunk))


def load_slots(name: str, uneven: UnevenModel) -> SlotEngine:
    engine = load_engine(name, uneven.folders[ENGINES[name].reads], SIZES)
    assert isinstance(engine, SlotEngine)
    return engine
