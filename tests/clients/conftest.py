"""Servers for the clients: of scripted models, whose answers are known, and of a real one."""

import os
from collections.abc import Iterator

import pytest

from tests.clients.answers import ANNA, ANNA_CALLED, CALLS, MODEL, TEXT
from tests.server.encoders import encoder_of
from tests.server.live import serving_engine, serving_model, speaking
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.tool_server import saying
from tests.tool_templates import QWEN25

# Without it, litellm fetches its table of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.fixture(scope="session")
def talker() -> Iterator[str]:
    """Says TEXT."""
    with serving_engine(speaking(TEXT)) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def caller() -> Iterator[str]:
    """Says something and calls both tools."""
    with saying(CALLS) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def teller() -> Iterator[str]:
    """Writes a person as JSON."""
    with saying(ANNA.model_dump_json()) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def filler() -> Iterator[str]:
    """Calls a tool named after the class Person."""
    with saying(ANNA_CALLED) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def embedder() -> Iterator[str]:
    """Embeds texts."""
    with serving_model(encoder_of("embed")) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real engine: a random model, whose answers have a form only where they must."""
    folder = tmp_path_factory.mktemp("noise") / MODEL
    folder.mkdir()
    tiny_folder(folder, chat_template=QWEN25, max_position_embeddings=4096)
    with serving_folder(folder, slots=4) as client:
        yield str(client.base_url)
