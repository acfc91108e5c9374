"""langchain-openai: chats, tools, structured output, over chat completions and over responses."""

from functools import reduce
from operator import add
from typing import Any

import pytest

from tests.clients.answers import (
    ANNA,
    MODEL,
    PARIS,
    QUESTION,
    REASON,
    TEXT,
    TOO_LONG,
    Person,
    Pet,
    clock,
    get_weather,
)
from tests.server.encoders import expected

langchain_openai = pytest.importorskip("langchain_openai", reason=REASON)
pytestmark = [
    pytest.mark.slow,
    # langchain's own: it dumps parsed answers by the types of unparsed ones.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

CALLED = [("get_weather", PARIS), ("clock", {})]
# Over which of OpenAI's APIs.
BOTH = pytest.mark.parametrize("use_responses_api", [False, True])


def chat_of(url: str, **options: Any) -> Any:
    own = {"model": MODEL, "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    return langchain_openai.ChatOpenAI(**own, stream_usage=True, **options)


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@BOTH
def test_invoke_batch_and_stream(talker: str, use_responses_api: bool) -> None:
    chat = chat_of(talker, use_responses_api=use_responses_api)
    assert chat.invoke(QUESTION).text == TEXT
    assert [message.text for message in chat.batch(["a", "b"])] == [TEXT] * 2
    message = reduce(add, chat.stream(QUESTION))
    assert message.text == TEXT
    assert message.usage_metadata["output_tokens"] == 7


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_their_results(caller: str, use_responses_api: bool, stream: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = chat_of(caller, use_responses_api=use_responses_api).bind_tools([get_weather, clock])
    message = reduce(add, chat.stream(QUESTION)) if stream else chat.invoke(QUESTION)
    assert (message.text, calls(message)) == ("I look.", CALLED)
    results = [ToolMessage("7", tool_call_id=call["id"]) for call in message.tool_calls]
    again = chat.invoke([HumanMessage(QUESTION), message, *results])
    assert calls(again) == CALLED
    assert again.usage_metadata["input_tokens"] > message.usage_metadata["input_tokens"]


@pytest.mark.parametrize("choice", ["any", "required", "Pet", True])
def test_forced_calls(noise: str, choice: str | bool) -> None:
    chat = chat_of(noise).bind_tools([Pet], tool_choice=choice, parallel_tool_calls=False)
    [(name, arguments)] = calls(chat.invoke(QUESTION))
    assert name == "Pet"
    assert Pet(**arguments)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_structured_output(teller: str, filler: str, method: str, stream: bool) -> None:
    chat = chat_of(filler if method == "function_calling" else teller)
    structured = chat.with_structured_output(Person, method=method)
    answers = [*structured.stream(QUESTION)] if stream else [structured.invoke(QUESTION)]
    assert answers[-1] == ANNA


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@BOTH
def test_structured_output_of_noise(noise: str, method: str, use_responses_api: bool) -> None:
    chat = chat_of(noise, use_responses_api=use_responses_api)
    structured = chat.with_structured_output(Pet, method=method, strict=True)
    assert isinstance(structured.invoke(QUESTION), Pet)


def test_completions(talker: str) -> None:
    own = {"model": MODEL, "base_url": f"{talker}/v1", "api_key": "none", "max_tokens": 50}
    completions = langchain_openai.OpenAI(**own)
    assert completions.invoke("a") == "".join(completions.stream("a")) == TEXT


def test_embeddings(embedder: str) -> None:
    """Unless told otherwise it sends the tokens of OpenAI's own models."""
    own = {"model": MODEL, "base_url": f"{embedder}/v1", "api_key": "none"}
    embeddings = langchain_openai.OpenAIEmbeddings(**own, check_embedding_ctx_length=False)
    texts = ["the cat", "猫 🚀"]
    assert embeddings.embed_documents(texts) == [expected(text).tolist() for text in texts]
    assert embeddings.embed_query("the cat") == expected("the cat").tolist()


def test_a_conversation_that_is_too_long_is_its_own_error(talker: str) -> None:
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        chat_of(talker).invoke(TOO_LONG)
