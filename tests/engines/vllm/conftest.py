"""All of this folder needs vLLM, which runs in this process where nothing else is said."""

import gc
import importlib
from collections.abc import Iterator

import pytest
import torch

from sgate_serve.engines.table import VLLM
from tests.installed import require_engine


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """On models this small, threads only wait for each other; vLLM lets nobody change it later."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="package")
def installed_vllm(one_thread: None) -> Iterator[None]:
    """Import vLLM for all tests, and keep its modules out of the garbage collector's way.

    An engine that starts and ends makes seven full collections, half of a test's time. It thaws
    what is frozen before them, so that has no effect here; what it leaves is still collected.
    """
    require_engine(VLLM)
    importlib.import_module("sgate_serve.engines.vllm.engine")
    importlib.import_module("vllm.v1.worker.cpu_worker")
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("freeze", "unfreeze"):
            patch.setattr(gc, name, lambda: None)
        yield
    gc.unfreeze()
