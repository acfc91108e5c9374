"""Tool calls in chat completions: what clients send and get; formats are tested with their text."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai import OpenAI

from sgate_serve.errors import SgateError
from sgate_serve.server import ServerOptions
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    EOS_ID,
    MODEL,
    VOCAB_SIZE,
    events,
    model_of,
    refusal,
    serving_model,
    token_ids,
)
from tests.server.test_openai_sdk import OPTIONS
from tests.server.tool_server import (
    BODY,
    CALL,
    CHAT,
    CLOCK_CALL,
    PARIS,
    USER,
    ask,
    calls_of,
    saying,
    tool_codec,
)
from tests.tool_templates import CLOCK, TEMPLATES, WEATHER, conversation

TEXT = f"I look.\n{CALL}\n{CLOCK_CALL}"


@pytest.fixture(scope="module")
def caller() -> Iterator[httpx.Client]:
    with saying(TEXT) as client:
        yield client


def test_calls_have_openais_shape(caller: httpx.Client) -> None:
    [choice] = ask(caller, **BODY)["choices"]
    assert choice["message"].keys() == {"role", "content", "refusal", "tool_calls"}
    assert choice["message"]["content"] == "I look."
    assert calls_of(choice) == [("get_weather", json.loads(PARIS)), ("clock", {})]
    assert choice["finish_reason"] == "tool_calls"


def test_an_answer_of_calls_alone_has_no_content() -> None:
    with saying(CALL) as client:
        [choice] = ask(client, **BODY)["choices"]
        assert choice["message"]["content"] is None
        first, second = ask(client, **BODY, n=2)["choices"]
        assert calls_of(first) == calls_of(second) == [("get_weather", json.loads(PARIS))]


def test_choices_of_the_client_are_followed(caller: httpx.Client) -> None:
    [choice] = ask(caller, **BODY, parallel_tool_calls=False)["choices"]
    assert [name for name, _ in calls_of(choice)] == ["get_weather"]
    withouts: list[dict[str, Any]] = [{"tool_choice": "none"}, {"tools": None}, {"tools": []}]
    for without in withouts:
        [choice] = ask(caller, **{**BODY, **without})["choices"]
        assert choice["message"]["content"] == TEXT
        assert (choice["finish_reason"], calls_of(choice)) == ("stop", [])
    [choice] = ask(caller, **{**BODY, "tools": [CLOCK]})["choices"]
    assert choice["message"]["content"] == f"I look.\n{CALL}"
    assert calls_of(choice) == [("clock", {})]


def test_calls_that_are_cut_off_or_malformed_are_content(caller: httpx.Client) -> None:
    for limit, reason in (({"max_tokens": 60}, "length"), ({"stop": "Paris"}, "stop")):
        [choice] = ask(caller, **BODY, **limit)["choices"]
        assert TEXT.startswith(choice["message"]["content"])
        assert '"arguments"' in choice["message"]["content"]
        assert (choice["finish_reason"], calls_of(choice)) == (reason, [])


def test_streams_begin_a_call_with_its_name_and_go_on_with_arguments(caller: httpx.Client) -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = events(caller.post(CHAT, json=body))
    assert usage["usage"]["completion_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    pieces = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert all(len(delta.get("tool_calls", [])) <= 1 for delta in deltas)
    assert pieces[0].keys() == {"index", "id", "type", "function"}
    assert pieces[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert pieces[1] == {"index": 0, "function": {"arguments": PARIS}}
    assert [piece["index"] for piece in pieces] == [0, 0, 1, 1]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["tool_calls"]


def test_every_token_is_in_one_chunk(caller: httpx.Client) -> None:
    own = {**BODY, "logprobs": True, "return_token_ids": True}
    [whole] = ask(caller, **own)["choices"]
    chunks = events(caller.post(CHAT, json={**own, "stream": True}))[1:]
    choices = [chunk["choices"][0] for chunk in chunks]
    tokens = [token for choice in choices for token in choice["token_ids"]]
    assert tokens == whole["token_ids"]
    listed = [choice["logprobs"]["content"] for choice in choices if choice["token_ids"]]
    scores = [score for content in listed for score in content]
    assert scores == whole["logprobs"]["content"]
    assert len(scores) == len(tokens)


def test_markers_that_are_special_tokens_are_read() -> None:
    arguments = json.loads(PARIS)
    for kind, text, markers in (
        ("mistral", f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}}}]', 1),
        ("llama3_json", f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}', 1),
        ("hermes", CALL, 2),
    ):
        names = ("<|python_tag|>", "[TOOL_CALLS]", "<tool_call>", "</tool_call>")
        own = tuple(name for name in names if name in text)
        assert len(own) == markers
        with saying(text, TEMPLATES[kind], own) as client:
            [choice] = ask(client, **BODY)["choices"]
            function = choice["message"]["tool_calls"][0]["function"]
            assert json.loads(function["arguments"]) == arguments
            [choice] = ask(client, **BODY, tool_choice="none")["choices"]
            assert not any(name in choice["message"]["content"] for name in own)


def test_the_openai_sdk_makes_the_same_of_both(caller: httpx.Client) -> None:
    sdk = OpenAI(base_url=f"{caller.base_url}/v1", **OPTIONS)
    body: dict[str, Any] = {**BODY, "model": MODEL}
    message = sdk.chat.completions.create(**body).choices[0].message
    assert message.tool_calls is not None
    with sdk.chat.completions.stream(**body) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0]
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert (streamed.finish_reason, streamed.message.content) == ("tool_calls", "I look.")
    assert streamed.message.tool_calls is not None
    same = [call.function.model_dump(include={"name", "arguments"}) for call in message.tool_calls]
    assert same == [
        call.function.model_dump(include={"name", "arguments"})
        for call in streamed.message.tool_calls
    ]
    # Both are sent back with the result, as the SDK's users do.
    for answer in (message, streamed.message):
        assert answer.tool_calls is not None
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}
            for call in answer.tool_calls
        ]
        again = {**body, "messages": [USER, answer.model_dump(), *results]}
        assert sdk.chat.completions.create(**again).choices[0].finish_reason == "tool_calls"


def test_the_prompt_has_tools_calls_and_results(caller: httpx.Client) -> None:
    messages = conversation('{"city": "Rome", "unit": null}')
    shown = {
        name: caller.post("/detokenize", json={"tokens": body["tokens"]}).json()["prompt"]
        for name, body in (
            ("with", ask(caller, "/tokenize", messages=messages, tools=[WEATHER])),
            ("without", ask(caller, "/tokenize", messages=messages)),
        )
    }
    for text in shown.values():
        assert '{"name": "get_weather", "arguments": {"city": "Rome", "unit": null}}' in text
        assert '<tool_response>\n{"degrees": 7}\n' in text
    assert '"enum": ["C", "F", null]' in shown["with"]
    assert "enum" not in shown["without"]
    usage = ask(caller, messages=messages, tools=[WEATHER])["usage"]
    assert usage["prompt_tokens"] == len(
        ask(caller, "/tokenize", messages=messages, tools=[WEATHER])["tokens"]
    )


def test_a_template_without_tools_refuses_them_with_the_remedy(client: httpx.Client) -> None:
    for path in (CHAT, "/tokenize"):
        error = refusal(client.post(path, json=BODY))
        assert error["param"] == "tools"
        assert (
            "does not show `tools`, so the model cannot call them; put a chat_template.jinja"
            in (error["message"])
        )
    assert ask(client, **BODY, tool_choice="none", max_tokens=2)


def test_a_format_that_is_unknown_is_refused() -> None:
    with saying("a", "{{ messages[0].content }}{{ tools }}") as client:
        error = refusal(client.post(CHAT, json=BODY))
    assert "start the server with --tool-call-parser hermes|" in error["message"]


def test_the_servers_operator_may_say_the_format(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sgate_serve.server.driver")
    codec = tool_codec("{{ messages[0].content }}{{ tools }}")
    engine = HashEngine(VOCAB_SIZE, script=[*token_ids(CALL), EOS_ID], max_model_len=4096)
    with serving_model(replace(model_of(engine, codec), tool_call_parser="hermes")) as client:
        [choice] = ask(client, **BODY)["choices"]
    assert calls_of(choice) == [("get_weather", json.loads(PARIS))]
    assert f"serving model={MODEL!r} engine=hash tool_calls=hermes" in caplog.messages
    with pytest.raises(SgateError, match=r"tool_call_parser is 'herms'; .* did you mean hermes\?"):
        ServerOptions(tool_call_parser="herms")


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [WEATHER, {"type": "function", "function": {"name": "f", **function}}]}


NAME, PARAMETERS = "tools.1.function.name", "tools.1.function.parameters"
REQUIRED = {"tool_choice": "required"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": {}}, "tools", "Input should be a valid list"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "Input should be 'function'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "is missing"),
        (tool(name="a b"), NAME, "String should match pattern"),
        (tool(name=""), NAME, "String should match pattern"),
        (tool(name="a" * 129), NAME, "String should match pattern"),
        (tool(name="get_weather"), "tools", "2 functions named 'get_weather'; give each its own"),
        (tool(parameters=[]), PARAMETERS, "Input should be a valid dictionary"),
        (tool(parameter={}), "tools.1.function.parameter", "did you mean parameters?"),
        ({"tools": [CLOCK] * 1025}, "tools", "at most 1024 items"),
        (tool(parameters={"type": "array"}) | REQUIRED, PARAMETERS, 'type` must be "object"'),
        (
            tool(parameters={"properties": {"a": {"type": "x"}}}) | REQUIRED,
            PARAMETERS,
            "cannot be followed: Invalid type: x",
        ),
        (tool(parameters={"uniqueItems": True}) | REQUIRED, PARAMETERS, "uniqueItems"),
        ({**REQUIRED, "tools": None}, "tool_choice", "there are no `tools`; send some"),
        ({**REQUIRED, "tools": []}, "tool_choice", "there are no `tools`; send some"),
        ({"tool_choice": "always"}, "tool_choice", "expected none, auto, required, or"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "names 'x', which is none of `tools`",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is missing"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "true or false"),
        (
            {"structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "constrains the whole answer, which then calls no tools; send `response_format`",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "is not supported"),
    ],
)
def test_bad_tools_are_refused_by_name(
    caller: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = caller.post(CHAT, json={**BODY, **body})
    error = refusal(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert len(error["message"]) < 400


def test_tools_without_a_conversation_are_refused(caller: httpx.Client) -> None:
    error = refusal(caller.post("/tokenize", json={"prompt": "a", "tools": [CLOCK]}))
    assert (error["param"], error["message"]) == (
        "tools",
        "`tools` are for `messages`; leave them out",
    )


def test_numbers_that_json_has_not_are_refused(caller: httpx.Client) -> None:
    text = json.dumps({**BODY, **tool(parameters={"default": float("nan")})})
    headers = {"content-type": "application/json"}
    error = refusal(caller.post(CHAT, content=text, headers=headers))
    assert (error["param"], "finite" in error["message"]) == (PARAMETERS, True)


def test_tools_are_described(caller: httpx.Client) -> None:
    schemas = caller.get("/openapi.json").json()["components"]["schemas"]
    assert {"tools", "tool_choice", "parallel_tool_calls"} <= (
        schemas["ChatRequest"]["properties"].keys()
    )
    assert schemas["CalledFunction"]["properties"]["arguments"]["type"] == "string"
    assert schemas["Function"]["properties"]["strict"]
