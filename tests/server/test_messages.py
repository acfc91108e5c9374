"""/v1/messages in Anthropic's shapes; what it shares with chats is tested there.

Anthropic's client was seen to read all of them, but is no dependency of the tests.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgate_serve.server.execution.generation import Delta, Usage
from sgate_serve.server.protocol.anthropic_output import MessageShape
from sgate_serve.server.routes.json_answer import json_bytes
from sgate_serve.text.tool_calls import CallPiece
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, serving_engine
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.tool_server import CALL, CLOCK_CALL, LONG, PARIS, ask, saying, tool_codec
from tests.tool_templates import QWEN25, WEATHER

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
FUNCTION = WEATHER["function"]
TOOL: dict[str, Any] = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
    "cache_control": {"type": "ephemeral"},
}
CLOCK: dict[str, Any] = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
USER = {"role": "user", "content": "the weather?"}
BODY: dict[str, Any] = {"max_tokens": 500, "messages": [USER], "tools": [TOOL, CLOCK]}


@pytest.fixture(scope="module")
def caller() -> Iterator[httpx.Client]:
    with saying(f"I look.\n{CALL}\n{CLOCK_CALL}") as client:
        yield client


def named_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be named by its type."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{**block, "id": "" if "id" in block else None} for block in message["content"]]
    return {**message, "id": "", "content": content}


def test_a_message_has_text_and_calls(caller: httpx.Client) -> None:
    message = ask(caller, MESSAGES, **BODY)
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"]) == ("message", "assistant")
    text, first, second = message["content"]
    assert text == {"type": "text", "text": "I look."}
    assert first["id"].startswith("call_")
    assert first == {**first, "type": "tool_use", "name": "get_weather", "input": json.loads(PARIS)}
    assert (second["name"], second["input"]) == ("clock", {})
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"].keys() == {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
    }
    assert ask(caller, COUNT, messages=[USER], tools=BODY["tools"]) == {
        "input_tokens": message["usage"]["input_tokens"]
    }


def test_events_make_the_same_message(caller: httpx.Client) -> None:
    whole = ask(caller, MESSAGES, **BODY)
    events = named_events(caller.post(MESSAGES, json={**BODY, "stream": True}))
    message = events[0]["message"]
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "partial": ""})
            case "content_block_delta":
                delta, block = event["delta"], message["content"][event["index"]]
                assert delta["type"] == (
                    "text_delta" if block["type"] == "text" else "input_json_delta"
                )
                block["partial"] += delta.get("text", "") + delta.get("partial_json", "")
            case "content_block_stop":
                block = message["content"][event["index"]]
                partial = block.pop("partial")
                if block["type"] == "text":
                    block["text"] = partial
                else:
                    block["input"] = json.loads(partial)
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    assert events[-1] == {"type": "message_stop"}
    assert without_ids(message) == without_ids(whole)


def test_an_answer_and_its_results_are_sent_back(caller: httpx.Client) -> None:
    content = ask(caller, MESSAGES, **BODY)["content"]
    content[1]["input"] = {"city": "Rome", "unit": None}
    _, first, second = content
    results = [
        {"type": "tool_result", "tool_use_id": first["id"], "content": "7 degrees"},
        {
            "type": "tool_result",
            "tool_use_id": second["id"],
            "content": [{"type": "text", "text": "noon"}],
            "is_error": False,
        },
        {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}},
    ]
    turns = [USER, {"role": "assistant", "content": content}, {"role": "user", "content": results}]
    system = [{"type": "text", "text": "Be brief."}]
    given = {"messages": turns, "tools": BODY["tools"], "system": system}
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in (first, second)
    ]
    chat = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": first["id"], "content": "7 degrees"},
        {"role": "tool", "tool_call_id": second["id"], "content": "noon"},
        {"role": "user", "content": "and?"},
    ]
    clock = {"name": "clock", "parameters": CLOCK["input_schema"]}
    tools = [WEATHER, {"type": "function", "function": clock}]
    same = ask(caller, "/tokenize", messages=chat, tools=tools)
    assert ask(caller, COUNT, **given) == {"input_tokens": same["count"]}
    shown = ask(caller, "/detokenize", tokens=same["tokens"])["prompt"]
    assert '"arguments": {"city": "Rome", "unit": null}' in shown


def test_stops_limits_and_choices(caller: httpx.Client) -> None:
    stopped = ask(caller, MESSAGES, **BODY, stop_sequences=["zzz", "look"])
    assert [block["text"] for block in stopped["content"]] == ["I "]
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "look")
    cut = ask(caller, MESSAGES, **{**BODY, "max_tokens": 2})
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 2)
    plain = ask(caller, MESSAGES, **BODY, tool_choice={"type": "none"})
    assert (plain["stop_reason"], len(plain["content"])) == ("end_turn", 1)
    one = ask(
        caller, MESSAGES, **BODY, tool_choice={"type": "auto", "disable_parallel_tool_use": True}
    )
    assert [block["type"] for block in one["content"]] == ["text", "tool_use"]
    extra = {"metadata": {"user_id": "x"}, "thinking": {"type": "disabled"}, "service_tier": "auto"}
    assert ask(caller, MESSAGES, **BODY, **extra)


def test_forced_calls_are_valid(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"), chat_template=QWEN25, **LONG)
    with serving_folder(folder, slots=2) as client:
        choice = {"type": "tool", "name": "get_weather"}
        message = ask(client, MESSAGES, **BODY, tool_choice=choice)
        [block] = message["content"]
        assert block["input"].keys() == {"city", "unit"}
        assert message["stop_reason"] == "tool_use"
        schema = {"enum": ["a", "b"], "x-guidance": {"whitespace_flexible": False}}
        wanted = {"format": {"type": "json_schema", "schema": schema}}
        [block] = ask(client, MESSAGES, max_tokens=9, messages=[USER], output_config=wanted)[
            "content"
        ]
        assert json.loads(block["text"]) in ("a", "b")
        own = {"type": "any", "disable_parallel_tool_use": True}
        [block] = ask(client, MESSAGES, **BODY, tool_choice=own)["content"]
        assert block["name"] in ("get_weather", "clock")


def test_other_tools_are_left_out_with_a_line_in_the_log(
    caller: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sgate_serve.server.protocol")
    tools = [{"type": "web_search_20250305", "name": "web_search"}, TOOL]
    [_, call] = ask(caller, MESSAGES, **{**BODY, "tools": tools})["content"][:2]
    assert call["name"] == "get_weather"
    line = "tools of other types than custom are left out: ['web_search_20250305']"
    assert line in caplog.messages


def refusal(response: httpx.Response) -> tuple[str, str | None, str]:
    """The type, param and message of an error, which must have Anthropic's shape."""
    body = response.json()
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    details = body["error"].get("details", {"error_code": None})
    assert details == {"error_code": body["error"]["code"]}
    return body["error"]["type"], body["error"]["param"], body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"max_tokens": None}, "max_tokens", "is missing; expected a positive integer"),
        (
            {"max_tokens": 9000},
            "messages",
            "maximum context length is 4096 tokens, and",
        ),
        ({"thread": {"type": "create"}}, "thread", "this server stores none; leave it out"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role", "'user' or 'assi"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages.0.content.0",
            "does not match any of the expected tags",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}
                ]
            },
            "messages.0.content.0.input",
            "is missing",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}
                ]
            },
            "messages.0",
            "calls are the assistant's, and their results the user's",
        ),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema", "is missing"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice", "`name` goes with the type tool"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice", "is none of `tools`"),
        (
            {
                "tools": [{"type": "bash_20250124"}, {"name": "f", "input_schema": {"type": "x"}}],
                "tool_choice": {"type": "any"},
            },
            "tools.1.input_schema",
            '`tools.1.input_schema.type` must be "object"',
        ),
        ({"thinking": {"type": "enabled"}}, "thinking", "is not supported"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format.schema",
            "`output_config.format.schema` cannot be followed",
        ),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"model": "gpt"}, "model", "is not served here"),
    ],
)
def test_bad_fields_are_refused_in_anthropics_shape(
    caller: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = caller.post(MESSAGES, json={**BODY, **body})
    kind, named, text = refusal(response)
    status = 404 if param == "model" else 400
    assert (response.status_code, named) == (status, param)
    assert kind == ("not_found_error" if status == 404 else "invalid_request_error")
    assert message in text


def test_the_key_may_be_in_anthropics_header() -> None:
    with saying("a") as client:
        assert ask(client, MESSAGES, max_tokens=3, messages=[USER])["content"][0]["text"] == "a"
    engine = HashEngine(VOCAB_SIZE)
    with serving_engine(engine, tool_codec(QWEN25), api_key="secret") as client:
        body = {"max_tokens": 3, "messages": [USER]}
        right = client.post(MESSAGES, json=body, headers={"x-api-key": "secret"})
        assert right.status_code == 200
        for headers in ({"x-api-key": "secre"}, {"x-api-key": ""}, {"authorization": "secret"}):
            wrong = client.post(MESSAGES, json=body, headers=headers)
            assert (wrong.status_code, refusal(wrong)[0]) == (401, "authentication_error")


def test_a_stream_that_fails_ends_with_an_error() -> None:
    engine = HashEngine(VOCAB_SIZE, max_model_len=4096, step_seconds=0.01)
    body = {"max_tokens": 3000, "messages": [USER], "stream": True}
    with (
        serving_engine(engine, tool_codec(QWEN25)) as client,
        client.stream("POST", MESSAGES, json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        engine.fails.set()
        last = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert "engine failed" in last["error"]["message"]


def test_an_answer_goes_on_with_the_assistants_text(caller: httpx.Client) -> None:
    begun = {"role": "assistant", "content": "It is"}
    chat = {"continue_final_message": True, "add_generation_prompt": False}
    messages = [USER, begun]
    shown = caller.post("/apply-template", json={"messages": messages, **chat}).json()
    assert shown["prompt"].endswith("It is")
    tokens = caller.post("/tokenize", json={"messages": messages, **chat}).json()["count"]
    counted = ask(caller, COUNT, messages=messages)
    assert counted == {"input_tokens": tokens}
    usage = ask(caller, MESSAGES, max_tokens=2, messages=messages)["usage"]
    assert usage["input_tokens"] + (usage["cache_read_input_tokens"] or 0) == tokens


def test_tokens_are_counted_of_what_the_model_could_not_read(caller: httpx.Client) -> None:
    long = [{"role": "user", "content": "a" * 9000}]
    assert ask(caller, COUNT, messages=long)["input_tokens"] > 9000
    assert caller.post(MESSAGES, json={**BODY, "messages": long}).status_code == 400


@pytest.mark.parametrize("value", ["1e999", '"\\ud83d"', "[" * 5000 + "]" * 5000, "[1"])
def test_arguments_that_json_cannot_say_again_are_none(value: str) -> None:
    call = [CallPiece(0, id="x", name="f"), CallPiece(0, f'{{"a": {value}}}')]
    delta = Delta(0, "", (), "stop", calls=tuple(call), has_called=True)
    message = MessageShape("msg", "m").body([delta], Usage(1, 1))
    assert message["content"] == [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text('a"é'),
        lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text("b\\"), own, max_size=3),
        max_leaves=30,
    )
)
def test_json_in_pieces_is_json(value: Any) -> None:
    whole = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert json_bytes(value) == whole.encode()
