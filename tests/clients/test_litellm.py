"""litellm, which speaks to this server as to OpenAI, to vLLM, and to Anthropic."""

import json
from typing import Any

import pytest

from tests.clients.answers import (
    MESSAGES,
    MODEL,
    PARIS,
    QUESTION,
    REASON,
    TEXT,
    TOO_LONG,
    TOOLS,
    Pet,
)
from tests.server.encoders import expected

litellm = pytest.importorskip("litellm", reason=REASON)
pytestmark = [
    pytest.mark.slow,
    # litellm's own: it dumps usage of chats in the shape of responses, and the reverse.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

litellm.suppress_debug_info = True
CHATS = ["openai", "hosted_vllm", "anthropic"]
CALLED = [("get_weather", PARIS), ("clock", {})]


def options(provider: str, url: str) -> dict[str, Any]:
    base = url if provider == "anthropic" else f"{url}/v1"
    own = {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": "none", "num_retries": 0}
    return {**own, "max_tokens": 400} if provider == "anthropic" else own


def ask(provider: str, url: str, **body: Any) -> Any:
    """The one choice of a chat, whole or put together by litellm from its stream."""
    answer = litellm.completion(**{"messages": MESSAGES, **options(provider, url), **body})
    if body.get("stream"):
        answer = litellm.stream_chunk_builder([*answer], messages=MESSAGES)
    return answer.choices[0]


def calls(choice: Any) -> list[tuple[str, Any]]:
    functions = [call.function for call in choice.message.tool_calls]
    return [(own.name, json.loads(own.arguments)) for own in functions]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", CHATS)
def test_chats_and_tools(talker: str, caller: str, provider: str, stream: bool) -> None:
    choice = ask(provider, talker, stream=stream)
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    choice = ask(provider, caller, stream=stream, tools=TOOLS)
    assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    assert calls(choice) == CALLED
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "7"}
        for call in choice.message.tool_calls
    ]
    turns = [*MESSAGES, choice.message.model_dump(), *results]
    assert calls(ask(provider, caller, messages=turns, tools=TOOLS)) == CALLED


@pytest.mark.parametrize("provider", CHATS)
def test_forced_calls_and_formats_are_followed(noise: str, provider: str) -> None:
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    [(name, arguments)] = calls(ask(provider, noise, tools=TOOLS, tool_choice=forced))
    assert name == "get_weather"
    assert arguments.keys() >= PARIS.keys()  # vLLM gets no `additionalProperties` from litellm
    choice = ask(provider, noise, response_format=Pet, max_tokens=100)
    assert Pet.model_validate_json(choice.message.content)


def test_completions_and_responses(talker: str) -> None:
    plain = {**options("text-completion-openai", talker), "prompt": "a", "max_tokens": 50}
    assert litellm.text_completion(**plain).choices[0].text == TEXT
    chunks = litellm.text_completion(**plain, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == TEXT
    asked = {**options("openai", talker), "input": QUESTION}
    [message] = litellm.responses(**asked).output
    assert message.content[0].text == TEXT
    events = [*litellm.responses(**asked, stream=True)]
    assert events[-1].response.output[0].content[0].text == TEXT


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_embeddings(embedder: str, provider: str) -> None:
    texts = ["the cat", "猫 🚀"]
    answer = litellm.embedding(input=texts, **options(provider, embedder))
    for text, entry in zip(texts, answer.data, strict=True):
        assert entry["embedding"] == expected(text).tolist()


@pytest.mark.parametrize("provider", CHATS)
def test_refusals_are_its_own_errors(talker: str, provider: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        ask(provider, talker, model=f"{provider}/x")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(provider, talker, messages=TOO_LONG)
