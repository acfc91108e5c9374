"""/v1/responses as OpenAI's own client sees it; what it shares with chats is tested there."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, VOCAB_SIZE, refusal, serving_engine
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.test_openai_sdk import OPTIONS
from tests.server.tool_server import CALL, CLOCK_CALL, LONG, PARIS, ask, saying, tool_codec
from tests.tool_templates import QWEN25, WEATHER

RESPONSES = "/v1/responses"
TOOL: dict[str, Any] = {"type": "function", **WEATHER["function"]}
CLOCK: dict[str, Any] = {"type": "function", "name": "clock"}
BODY: dict[str, Any] = {"model": MODEL, "input": "the weather?", "tools": [TOOL, CLOCK]}


@pytest.fixture(scope="module")
def caller() -> Iterator[httpx.Client]:
    with saying(f"I look.\n{CALL}\n{CLOCK_CALL}") as client:
        yield client


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"), chat_template=QWEN25, **LONG)
    with serving_folder(folder, slots=4) as client:
        yield client


def sdk_of(client: httpx.Client) -> OpenAI:
    return OpenAI(base_url=f"{client.base_url}/v1", **OPTIONS)


def plain(item: Any) -> Any:
    """An item without its ids, which are new in each answer."""
    shown = item.model_dump(exclude_unset=True, exclude={"id", "call_id", "parsed_arguments"})
    for part in shown.get("content", []):
        part.pop("parsed", None)
    return shown


def test_a_response_has_text_and_calls(caller: httpx.Client) -> None:
    response = sdk_of(caller).responses.create(**BODY, instructions="Be brief.")
    assert (response.status, response.output_text) == ("completed", "I look.")
    message, first, second = map(plain, response.output)
    assert (message["type"], message["status"]) == ("message", "completed")
    assert first == {
        "type": "function_call",
        "name": "get_weather",
        "arguments": PARIS,
        "status": "completed",
    }
    assert (second["name"], second["arguments"]) == ("clock", "{}")
    assert response.usage is not None
    total = response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.total_tokens == total
    assert response.instructions == "Be brief."
    assert [tool.name for tool in response.tools] == ["get_weather", "clock"]


def test_texts_come_with_log_probabilities_where_asked(noise: httpx.Client) -> None:
    sdk = sdk_of(noise)
    [model] = sdk.models.list().data
    options: dict[str, Any] = {
        "model": model.id,
        "input": "the cat",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 12,
        "temperature": 0,
    }
    messages: list[Any] = [{"role": "user", "content": "the cat"}]
    chat = sdk.chat.completions.create(
        model=model.id,
        messages=messages,
        max_tokens=12,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert chat.choices[0].logprobs is not None
    wanted = [entry.model_dump() for entry in chat.choices[0].logprobs.content or ()]
    with sdk.responses.stream(**options) as stream:
        events = list(stream)
    final = events[-1].response  # type: ignore[union-attr]
    for response in (sdk.responses.create(**options), final):
        assert response.top_logprobs == 2
        [part] = response.output[-1].model_dump()["content"]
        assert len(part["logprobs"]) == len(wanted) == 12
        for entry, own in zip(part["logprobs"], wanted, strict=True):
            assert entry["logprob"] == pytest.approx(own["logprob"], abs=1e-4)
            assert (entry["token"], entry["bytes"]) == (own["token"], own["bytes"])
            assert len(entry["top_logprobs"]) == 2
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == final.output_text
    tokens = [entry.token for event in deltas for entry in event.logprobs]
    # The last tokens may have no text of their own.
    assert tokens == [entry["token"] for entry in wanted][: len(tokens)] and tokens


def test_typed_events_make_the_same_response(caller: httpx.Client) -> None:
    sdk = sdk_of(caller)
    whole = sdk.responses.create(**BODY)
    with sdk.responses.stream(**BODY) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert list(map(plain, final.output)) == list(map(plain, whole.output))
    assert final.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    once = list(dict.fromkeys(kinds[4:]))
    assert once == [
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "completed",
    ]
    text = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(text) == "I look."


def test_an_answer_and_its_results_are_sent_back(caller: httpx.Client) -> None:
    sdk = sdk_of(caller)
    output = sdk.responses.create(**BODY).output
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "7 degrees"}
        for item in output
        if item.type == "function_call"
    ]
    question = {"role": "user", "content": [{"type": "input_text", "text": "the weather?"}]}
    again = [question, *(item.model_dump() for item in output), *results]
    response = sdk.responses.create(**{**BODY, "input": again, "instructions": "Be brief."})
    calls = [
        {"id": item["call_id"], "type": "function", "function": item}
        for item in again
        if item.get("type") == "function_call"
    ]
    for call in calls:
        call["function"] = {name: call["function"][name] for name in ("name", "arguments")}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "the weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "7 degrees"} for call in calls),
    ]
    tools = [WEATHER, {"type": "function", "function": {"name": "clock"}}]
    assert response.usage is not None
    same = ask(caller, messages=chat, tools=tools)["usage"]["prompt_tokens"]
    assert response.usage.input_tokens == same


def test_choices_limits_and_fields_without_effect(caller: httpx.Client) -> None:
    sdk = sdk_of(caller)
    extra: dict[str, Any] = {"store": True, "truncation": "disabled", "user": "x", "include": []}
    none = sdk.responses.create(**BODY, **extra, tool_choice="none", metadata={"a": "b"})
    assert [item.type for item in none.output] == ["message"]
    assert none.metadata == {"a": "b"}
    cut = sdk.responses.create(**BODY, max_output_tokens=2)
    assert (cut.status, cut.output[-1].status) == ("incomplete", "incomplete")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    one = sdk.responses.create(**BODY, parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["message", "function_call"]


def test_other_tools_are_left_out_with_a_line_in_the_log(
    caller: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sgate_serve.server.protocol")
    response = sdk_of(caller).responses.create(
        **{**BODY, "tools": [{"type": "web_search", "filters": {}}, TOOL]}
    )
    assert [tool.type for tool in response.tools] == ["function"]
    line = "tools of other types than function are left out: ['web_search']"
    assert line in caplog.messages


def test_forced_calls_and_formats_are_valid(noise: httpx.Client) -> None:
    sdk = sdk_of(noise)
    choice: Any = {"type": "function", "name": "get_weather"}
    own = {**BODY, "model": sdk.models.list().data[0].id, "max_output_tokens": 400}
    with sdk.responses.stream(**own, tool_choice=choice) as stream:
        [call] = stream.get_final_response().output
    assert call.type == "function_call"
    assert json.loads(call.arguments).keys() == {"city", "unit"}
    required = sdk.responses.create(**own, tool_choice="required", parallel_tool_calls=False)
    assert [item.type for item in required.output] == ["function_call"]
    schema: dict[str, Any] = {"enum": ["a", "b"], "x-guidance": {"whitespace_flexible": False}}
    text: Any = {"format": {"type": "json_schema", "name": "letter", "schema": schema}}
    answer = sdk.responses.create(model=own["model"], input="x", text=text)
    assert json.loads(answer.output_text) in ("a", "b")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": []}, "input", "expected a string, or a list of messages, function calls and"),
        ({"input": [5]}, "input.0", "Input should be"),
        ({"input": [{"type": "image", "x": 1}]}, "input.0", "does not match any of the expected"),
        ({"input": [{"role": "user", "text": "x"}]}, "input.0.text", "is not a known field"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type",
            "Input should be",
        ),
        (
            {
                "input": [
                    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"},
                ]
            },
            "input.0.arguments",
            "is not JSON",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "this server stores none"),
        ({"conversation": "x"}, "conversation", "is not supported; leave it out"),
        ({"background": True}, "background", "is not supported"),
        ({"top_logprobs": -1}, "top_logprobs", "greater than or equal to 0"),
        ({"top_logprobs": 2}, "top_logprobs", "is only for `include: [message.output_text.logp"),
        ({"include": ["file_search_call.results"]}, "include.0", "a list with `message.output_"),
        ({"include": ["message.output_text.logprobs"]}, "include", "that may call `tools`; leave"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_output_tokens": 9000}, "input", "is 4096 tokens, and `input` has"),
        (
            {
                "tools": [{"type": "mcp"}, {**CLOCK, "parameters": {"type": "array"}}],
                "tool_choice": "required",
            },
            "tools.1.parameters",
            '`tools.1.parameters.type` must be "object"',
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "is missing"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "is none of `tools`"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "y"}}}},
            "text.format.schema",
            "`text.format.schema` cannot be followed",
        ),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "Input should be 'medium'"),
    ],
)
def test_bad_fields_are_refused_in_their_own_names(
    caller: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = caller.post(RESPONSES, json={**BODY, **body})
    error = refusal(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_the_sdk_raises_refusals_and_sees_a_failed_stream() -> None:
    engine = HashEngine(VOCAB_SIZE, max_model_len=4096, step_seconds=0.01)
    with serving_engine(engine, tool_codec(QWEN25)) as client:
        sdk = sdk_of(client)
        with pytest.raises(BadRequestError) as bad:
            sdk.responses.create(model=MODEL, input="x", previous_response_id="a")
        assert bad.value.param == "previous_response_id"
        events = []
        for event in sdk.responses.create(model=MODEL, input="x", stream=True):
            engine.fails.set()
            events.append(event)
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "engine failed" in events[-1].response.error.message
