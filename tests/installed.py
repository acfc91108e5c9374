"""Skip the tests of an engine that is not installed; fail them where CI requires the engine."""

import importlib
import os

import pytest

from sgate_serve.engines.table import ENGINES, missing_modules

# Names of engines separated by spaces, set by .ci/run.
REQUIRED = "SGATE_REQUIRED_ENGINES"


def require_engine(name: str) -> None:
    """Skip the test, or fail it if CI requires the engine, unless engine `name` can be imported."""
    reason = _why_not(name)
    if reason is None:
        return
    if name in os.environ.get(REQUIRED, "").split():
        pytest.fail(f"{reason}, and {REQUIRED} names it")
    pytest.skip(reason)


def _why_not(name: str) -> str | None:
    missing = missing_modules(ENGINES[name])
    if missing:
        return f"engine {name} needs {', '.join(missing)}"
    try:
        for module in ENGINES[name].modules:
            importlib.import_module(module)
    except ImportError as error:
        return f"engine {name} cannot be imported: {error}"
    return None
