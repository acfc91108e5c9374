"""Tool calls that a grammar forces, or keeps valid: the real engine, whose model is noise."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgate_serve.text.tool_formats import FORMATS
from tests.server.live import (
    EOS_ID,
    events,
)
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.tool_server import BODY, CHAT, LONG, USER, ask, calls_of
from tests.tool_templates import QWEN25, TEMPLATES, WEATHER

jsonschema = pytest.importorskip("jsonschema", reason="pip install sgate-serve[dev]")


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The real engine: a random model, which calls nothing unless it must."""
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"), chat_template=QWEN25, **LONG)
    with serving_folder(folder, slots=4) as client:
        yield client


def check_valid(choice: dict[str, Any]) -> list[str]:
    """Check the calls of a choice against their parameters, and return their names."""
    schemas = {"get_weather": WEATHER["function"]["parameters"], "clock": {"maxProperties": 0}}
    calls = calls_of(choice)
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])
    return [name for name, _ in calls]


FORCED: dict[str, Any] = {"temperature": 1.5, "max_tokens": 400, "n": 4}


def test_required_calls_are_valid(noise: httpx.Client) -> None:
    # Noise would go on calling: a bias makes it end where it may.
    own = {**BODY, **FORCED, "tool_choice": "required", "seed": 1, "logit_bias": {str(EOS_ID): 4}}
    answer = ask(noise, **own)
    names = [check_valid(choice) for choice in answer["choices"]]
    assert all(names)
    assert {name for own in names for name in own} == {"get_weather", "clock"}
    for choice in answer["choices"]:
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] == "tool_calls"
    one = ask(noise, **own, parallel_tool_calls=False)
    assert all(len(check_valid(choice)) == 1 for choice in one["choices"])
    assert {choice["finish_reason"] for choice in one["choices"]} == {"tool_calls"}


def test_a_named_tool_is_called_once_and_ends_with_stop_as_at_openai(noise: httpx.Client) -> None:
    for kind in (None, "json_object"):
        fields: dict[str, Any] = {"response_format": kind and {"type": kind}}
        answer = ask(noise, **BODY, **FORCED, tool_choice=NAMED, seed=2, **fields)
        for choice in answer["choices"]:
            assert check_valid(choice) == ["get_weather"]
            assert choice["finish_reason"] == "stop"


def test_forced_calls_stream_their_arguments_in_pieces(noise: httpx.Client) -> None:
    own = {**BODY, "tool_choice": NAMED, "seed": 3, "max_tokens": 400}
    [whole] = ask(noise, **own)["choices"]
    for more in ({}, {"prompt_lookup_num_tokens": 4}):
        chunks = events(noise.post(CHAT, json={**own, **more, "stream": True}))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        pieces = [call["function"] for own in deltas for call in own.get("tool_calls", [])]
        assert len(pieces) > 8 or more
        arguments = "".join(piece["arguments"] for piece in pieces)
        assert json.loads(arguments) == calls_of(whole)[0][1]
        assert not any(delta.get("content") for delta in deltas)


def test_a_forced_call_that_is_cut_off_shows_what_there_is(noise: httpx.Client) -> None:
    own = {**BODY, "tool_choice": NAMED, "temperature": 0}
    [whole] = ask(noise, **own, max_tokens=400)["choices"]
    [choice] = ask(noise, **own, max_tokens=58)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "length"
    full = whole["message"]["tool_calls"][0]["function"]["arguments"]
    assert full.startswith(call["function"]["arguments"])
    assert call["function"]["arguments"] != full


@pytest.mark.parametrize("kind", TEMPLATES)
def test_strict_tools_are_called_validly_or_not_at_all(kind: str, tmp_path: Path) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    own: dict[str, Any] = {
        "messages": [USER],
        "tools": [strict],
        "max_tokens": 300,
        "n": 4,
        "seed": 4,
    }
    # Noise calls nothing by itself: a bias makes it begin a call, if that is a single token.
    folder = tiny_folder(tmp_path, chat_template=TEMPLATES[kind], **LONG)
    with serving_folder(folder, slots=4) as client:
        for choice in ask(client, **own)["choices"]:
            assert calls_of(choice) == []
        if FORMATS[kind].is_bare:
            [_, first] = ask(client, "/tokenize", prompt="{")["tokens"]
            for choice in ask(client, **own, logit_bias={str(first): 100})["choices"]:
                assert set(check_valid(choice)) == {"get_weather"}


def test_with_a_response_format_the_answer_has_it_or_is_calls(noise: httpx.Client) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
    }
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    own = {**BODY, "response_format": wanted, "max_tokens": 400, "n": 8, "seed": 5}
    own |= {"logit_bias": {str(EOS_ID): 4}}
    choices = ask(noise, **own)["choices"]
    called = [choice for choice in choices if choice["message"].get("tool_calls")]
    answered = [choice for choice in choices if choice["message"]["content"]]
    assert called
    assert answered
    assert len(called) + len(answered) == len(choices)
    for choice in called:
        check_valid(choice)
    for choice in answered:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_format_can_be_forced(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, chat_template=TEMPLATES[kind], **LONG)
    with serving_folder(folder, slots=4) as client:
        own = {**BODY, **FORCED, "tool_choice": "required", "parallel_tool_calls": False}
        for choice in ask(client, **own, seed=6)["choices"]:
            [call] = choice["message"]["tool_calls"]
            assert call["function"]["name"] in ("get_weather", "clock")
            json.loads(call["function"]["arguments"])
