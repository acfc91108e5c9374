"""All of this folder needs vLLM, which runs in this process where nothing else is said."""

import gc

import pytest
import torch

from sgate_serve.engines import VLLM
from tests.installed import require_engine


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """On models this small, threads only wait for each other; vLLM lets nobody change it later."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="package")
def installed_vllm(one_thread: None) -> None:
    require_engine(VLLM)
    # An engine that ends collects garbage seven times, half of a test's time with all of vLLM's
    # modules to walk through.
    gc.freeze()
