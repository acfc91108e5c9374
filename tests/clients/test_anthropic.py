"""Anthropic's SDK, which refuses what does not have its own types."""

import asyncio
from typing import Any

import pytest

from tests.clients.answers import (
    ANNA,
    MESSAGES,
    MODEL,
    PARIS,
    REASON,
    TEXT,
    TOO_LONG,
    Person,
    Pet,
    clock,
    get_weather,
)
from tests.tool_templates import WEATHER

anthropic = pytest.importorskip("anthropic", reason=REASON)
pytestmark = pytest.mark.slow

FUNCTION = WEATHER["function"]
TOOLS = [
    {"name": FUNCTION["name"], "input_schema": FUNCTION["parameters"]},
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
]
BODY: dict[str, Any] = {"model": MODEL, "max_tokens": 400, "messages": MESSAGES}
CALLED = [("text", "I look."), ("get_weather", PARIS), ("clock", {})]


def client_of(url: str) -> Any:
    return anthropic.Anthropic(
        base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
    )


def blocks(message: Any) -> list[tuple[str, Any]]:
    """The text and the calls of a message."""
    return [
        ("text", block.text) if block.type == "text" else (block.name, block.input)
        for block in message.content
    ]


def test_messages_and_their_stream(talker: str) -> None:
    client = client_of(talker)
    message = client.messages.create(**BODY, system="Be brief.", stop_sequences=["🚀"])
    assert blocks(message) == [("text", "the cat ")]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "🚀")
    assert message.usage.output_tokens == 3
    with client.messages.stream(**BODY) as stream:
        assert "".join(stream.text_stream) == TEXT
        message = stream.get_final_message()
    assert (blocks(message), message.stop_reason) == ([("text", TEXT)], "end_turn")
    assert client.beta.messages.create(**BODY).content[0].text == TEXT


def test_tools_whole_streamed_and_counted(caller: str) -> None:
    client = client_of(caller)
    message = client.messages.create(**BODY, tools=TOOLS)
    with client.messages.stream(**BODY, tools=TOOLS) as stream:
        streamed = stream.get_final_message()
    assert blocks(message) == blocks(streamed) == CALLED
    assert message.stop_reason == streamed.stop_reason == "tool_use"
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES, tools=TOOLS)
    assert counted.input_tokens == message.usage.input_tokens == streamed.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_the_runner_of_tools_sends_whole_conversations(caller: str, stream: bool) -> None:
    """It would leave them to the server, but goes on without that when told that none is stored."""
    tools = [anthropic.beta_tool(get_weather), anthropic.beta_tool(clock)]
    options: dict[str, Any] = {**BODY, "tools": tools, "max_iterations": 2, "stream": stream}
    turns = [*client_of(caller).beta.messages.tool_runner(**options)]
    messages = [turn.get_final_message() if stream else turn for turn in turns]
    assert [blocks(message) for message in messages] == [CALLED] * 2
    first, second = (message.usage.input_tokens for message in messages)
    assert second > first  # the calls and their results


def test_forced_calls_and_formats_are_followed(noise: str, teller: str) -> None:
    client = client_of(noise)
    choice = {"type": "tool", "name": "get_weather"}
    message = client.messages.create(**BODY, tools=TOOLS, tool_choice=choice)
    [(name, arguments)] = blocks(message)
    assert (name, arguments.keys()) == ("get_weather", PARIS.keys())
    assert isinstance(client.messages.parse(**BODY, output_format=Pet).parsed_output, Pet)
    client = client_of(teller)
    assert client.messages.parse(**BODY, output_format=Person).parsed_output == ANNA
    with client.messages.stream(**BODY, output_format=Person) as stream:
        assert stream.get_final_message().parsed_output == ANNA


def test_async_requests_side_by_side(caller: str) -> None:
    async def ask_all() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=caller, api_key="none") as client:
            asked = (client.messages.create(**BODY, tools=TOOLS) for _ in range(6))
            return [blocks(message) for message in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [CALLED] * 6


def test_refusals_are_the_sdks_own_errors(talker: str) -> None:
    client = client_of(talker)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**BODY, "model": "x"})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**{**BODY, "messages": TOO_LONG})
