import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.server.encoders import encoder_of, expected
from tests.server.live import MODEL, serving_engine, serving_model, speaking

# Whatever does not have the SDK's own types is an error.
OPTIONS: dict[str, Any] = {
    "api_key": "none",
    "max_retries": 0,
    "_strict_response_validation": True,
}
# The SDK's types lack what OpenAI itself sends: null as the reason of a completion's chunk and as
# the score of its first token, and base64, which the SDK decodes only after the validation.
LENIENT = OPTIONS | {"_strict_response_validation": False}
TEXT = "the cat 🚀 sat on the mat"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving_engine(speaking(TEXT)) as client:
        yield f"{client.base_url}/v1"


@pytest.fixture
def openai_client(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, **OPTIONS)


def test_models_and_completions(openai_client: OpenAI) -> None:
    [model] = openai_client.models.list().data
    assert model.id == MODEL
    assert openai_client.models.retrieve(model.id) == model
    completion = openai_client.completions.create(model=model.id, prompt="a", max_tokens=50)
    assert completion.choices[0].text == TEXT
    assert completion._request_id is not None
    assert completion.id.endswith(completion._request_id)


def test_chat_and_its_answer_sent_back(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == (TEXT, "stop")
    again: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        message.model_dump(),  # type: ignore[list-item]  # what the SDK's users do
        {"role": "user", "content": [{"type": "text", "text": "and"}]},
    ]
    answer = openai_client.chat.completions.create(model=MODEL, messages=again, stop="🚀")
    assert answer.choices[0].message.content == "the cat "


def test_streams(openai_client: OpenAI, base_url: str) -> None:
    completion = OpenAI(base_url=base_url, **LENIENT).completions.create(
        model=MODEL, prompt="a", max_tokens=50, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(completion)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert chunks[-1].usage is not None
    with openai_client.chat.completions.stream(model=MODEL, messages=MESSAGES) as chat:
        assert chat.get_final_completion().choices[0].message.content == TEXT


def test_async_streams_side_by_side(base_url: str) -> None:
    async def ask(client: AsyncOpenAI) -> str:
        chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=base_url, **OPTIONS) as client:
            return await asyncio.gather(*(ask(client) for _ in range(6)))

    assert asyncio.run(ask_all()) == [TEXT] * 6


def test_refusals_are_the_sdks_own_errors(openai_client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        openai_client.completions.create(model="gpt", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as bad:
        openai_client.chat.completions.create(model=MODEL, messages=MESSAGES, store=True)
    assert bad.value.param == "store"


@pytest.mark.parametrize("form", [None, "float"])
def test_embeddings_come_as_numbers_by_default_and_on_request(form: Any) -> None:
    """Unless told otherwise the SDK asks for base64 and decodes it by itself."""
    chosen = {"encoding_format": form} if form else {}
    texts = ["the cat", "猫 🚀"]
    with serving_model(encoder_of("embed")) as client:
        sdk = OpenAI(base_url=f"{client.base_url}/v1", **(OPTIONS if form else LENIENT))
        answer = sdk.embeddings.create(model=MODEL, input=texts, **chosen)
    for text, entry in zip(texts, answer.data, strict=True):
        assert entry.embedding == expected(text).tolist()
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
