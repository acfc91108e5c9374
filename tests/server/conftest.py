from collections.abc import Iterator

import httpx
import pytest

from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, serving_engine


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    """A client of a server that many tests share: the hash engine with a tokenizer."""
    with serving_engine(HashEngine(VOCAB_SIZE), max_body_bytes=100_000) as client:
        yield client
