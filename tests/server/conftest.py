from collections.abc import Iterator

import httpx
import pytest

from tests.server.encoders import encoder_of
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, serving_engine, serving_model


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    """A client of a server that many tests share: the hash engine with a tokenizer."""
    with serving_engine(HashEngine(VOCAB_SIZE), max_body_bytes=100_000) as client:
        yield client


@pytest.fixture(scope="session")
def embedder() -> Iterator[httpx.Client]:
    """A client of a shared server of embeddings."""
    with serving_model(encoder_of("embed")) as client:
        yield client


@pytest.fixture(scope="session")
def classifier() -> Iterator[httpx.Client]:
    """A client of a shared classifier."""
    with serving_model(encoder_of("classify")) as client:
        yield client
