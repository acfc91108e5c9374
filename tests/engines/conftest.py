"""The uneven model, written once per session, and the engines that load it."""

import pytest

from sgate_serve.engines import ENGINES, load_engine, missing_modules
from sgate_serve.engines.scheduler import SlotEngine
from tests.engines.uneven_model import SIZES, LoadEngine, UnevenModel, write_uneven_model


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> UnevenModel:
    return write_uneven_model(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(params=sorted(ENGINES))
def load(request: pytest.FixtureRequest, uneven: UnevenModel) -> LoadEngine:
    """Load the uneven model on each engine in turn, with the sizes that the test wants."""
    name = str(request.param)
    missing = missing_modules(ENGINES[name])
    if missing:
        pytest.skip(f"engine {name} needs {', '.join(missing)}")
    folder = uneven.folders[ENGINES[name].reads]
    return lambda options: load_engine(name, folder, options)


@pytest.fixture
def engine(load: LoadEngine) -> SlotEngine:
    return load(SIZES)


@pytest.fixture
def onnx_engine(uneven: UnevenModel) -> SlotEngine:
    return load_engine("onnx", uneven.folders["onnx"], SIZES)
