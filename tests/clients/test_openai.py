"""OpenAI's SDK beyond completions and chats: responses, tools and parsed answers.

It refuses what does not have its own types. Its plain use is in tests/server/test_openai_sdk.py.
"""

import json
from typing import Any

import openai
import pytest

from tests.clients.answers import (
    ANNA,
    MESSAGES,
    MODEL,
    PARIS,
    QUESTION,
    TEXT,
    TOOLS,
    Person,
    Pet,
)
from tests.server.test_openai_sdk import OPTIONS

pytestmark = pytest.mark.slow

CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES}
ASKED: dict[str, Any] = {"model": MODEL, "input": QUESTION}
FUNCTIONS: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
CALLED = [("get_weather", PARIS), ("clock", {})]


def client_of(url: str) -> Any:
    """The SDK's client; its types would have every argument cast."""
    return openai.OpenAI(base_url=f"{url}/v1", **OPTIONS)


def items(response: Any) -> list[tuple[str, Any]]:
    """The text and the calls of a response."""
    return [
        ("text", item.content[0].text)
        if item.type == "message"
        else (item.name, json.loads(item.arguments))
        for item in response.output
    ]


def streamed(client: Any, **body: Any) -> Any:
    with client.responses.stream(**ASKED, **body) as stream:
        return stream.get_final_response()


def calls(message: Any) -> list[tuple[str, Any]]:
    functions = [call.function for call in message.tool_calls]
    return [(own.name, json.loads(own.arguments)) for own in functions]


def test_responses_and_their_events(talker: str, caller: str) -> None:
    client = client_of(talker)
    assert client.responses.create(**ASKED, instructions="Be brief.").output_text == TEXT
    assert streamed(client).output_text == TEXT
    client = client_of(caller)
    response = client.responses.create(**ASKED, tools=FUNCTIONS)
    assert items(response) == items(streamed(client, tools=FUNCTIONS))
    assert items(response) == [("text", "I look."), *CALLED]


def test_a_response_is_sent_back_with_results(caller: str) -> None:
    client = client_of(caller)
    response = client.responses.create(**ASKED, tools=FUNCTIONS)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "7"}
        for item in response.output
        if item.type == "function_call"
    ]
    turns = [{"role": "user", "content": QUESTION}, *response.output, *results]
    again = client.responses.create(model=MODEL, input=turns, tools=FUNCTIONS)
    assert again.usage.input_tokens > response.usage.input_tokens


def test_responses_are_parsed(noise: str, teller: str) -> None:
    client = client_of(noise)
    assert isinstance(client.responses.parse(**ASKED, text_format=Pet).output_parsed, Pet)
    client = client_of(teller)
    assert client.responses.parse(**ASKED, text_format=Person).output_parsed == ANNA
    assert streamed(client, text_format=Person).output_parsed == ANNA


def test_chats_call_tools_whole_and_streamed(caller: str) -> None:
    client = client_of(caller)
    message = client.chat.completions.create(**CHAT, tools=TOOLS).choices[0].message
    with client.chat.completions.stream(**CHAT, tools=TOOLS) as stream:
        last = stream.get_final_completion().choices[0]
    assert (message.content, calls(message)) == ("I look.", CALLED)
    assert (last.message.content, calls(last.message)) == ("I look.", CALLED)
    assert last.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_chats_are_parsed(noise: str, stream: bool) -> None:
    client = client_of(noise)

    def ask(**body: Any) -> Any:
        if not stream:
            return client.chat.completions.parse(**CHAT, **body).choices[0].message
        with client.chat.completions.stream(**CHAT, **body) as events:
            return events.get_final_completion().choices[0].message

    assert isinstance(ask(response_format=Pet).parsed, Pet)
    forced = {"tools": [openai.pydantic_function_tool(Pet)], "tool_choice": "required"}
    [call] = ask(**forced, parallel_tool_calls=False).tool_calls
    assert isinstance(call.function.parsed_arguments, Pet)
