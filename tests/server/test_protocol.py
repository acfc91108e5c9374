import json
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.generation_requests import ChatRequest, CompletionRequest
from sgate_serve.server.protocol.pooling_requests import ClassifyRequest, EmbeddingRequest
from sgate_serve.server.protocol.strict_body import StrictBody, read_body
from sgate_serve.server.protocol.token_requests import DetokenizeRequest, TokenizeRequest
from sgate_serve.server.protocol.unsupported_parameters import IGNORED, NEUTRAL
from sgate_serve.text.chat_template import ChatTemplate
from tests.text_model import BOS, chat_template

USER = {"role": "user", "content": "hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called_with(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "f", "arguments": arguments}}


def refused(kind: type[StrictBody], body: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        kind.model_validate(body)
    assert raised.value.status == 400
    return raised.value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1, "`temperature` is -1: Input should be greater than or equal to 0; exp"),
        ("temperature", "1", "expected a number from 0 (greedy) to 2"),
        ("temperature", float("nan"), "`temperature` is nan: Input should be "),
        ("temperature", 2.5, "less than or equal to 2"),
        ("top_p", 0, "`top_p` is 0: Input should be greater than 0"),
        ("top_p", 1.01, "expected a number above 0, at most 1"),
        ("max_tokens", -1, "`max_tokens` is -1: Input should be greater than or equal to 0"),
        ("max_tokens", 0, "`max_tokens` 0 generates nothing, so it is only for `echo: true`; send"),
        ("logprobs", 21, "`logprobs` is 21: Input should be less than or equal to 20; expected a"),
        ("logprobs", True, "`logprobs` is True: Input should be a valid integer"),
        ("max_tokens", 1.5, "expected a positive integer"),
        ("max_tokens", True, "`max_tokens` is True: Input should be a valid integer"),
        ("n", 0, "`n` is 0: Input should be greater than or equal to 1; expected choices for each"),
        ("n", 129, "choices for each prompt, from 1 to 128"),
        ("n", True, "`n` is True: Input should be a valid integer"),
        ("top_k", -2, "expected how many tokens to choose from; -1 or 0 for all"),
        ("min_p", 1.5, "expected a number from 0 to 1"),
        ("min_tokens", -1, "expected a whole number, the fewest tokens to generate"),
        ("stop_token_ids", 5, "expected a list of at most 1024 token ids"),
        ("repetition_penalty", 0, "expected a number above 0"),
        ("presence_penalty", 2.5, "expected a number from -2 to 2"),
        ("frequency_penalty", -3, "expected a number from -2 to 2"),
        ("logit_bias", {"5": 101}, "is 101: Input should be less than or equal to 100; expected"),
        (
            "logit_bias",
            {"the": 1},
            "expected an object of at most 1024 token ids and numbers",
        ),
        ("logit_bias", [1], "expected an object of at most 1024 token ids"),
        ("seed", 2**63, "expected a 64-bit integer that makes sampling reproducible"),
        ("stream", "yes", "`stream` is 'yes': Input should be a valid boolean"),
        ("stop", "", "`stop` is '': String should have at least 1 character; expected a str"),
        ("stop", ["a"] * 17, "a list of at most 16 of them"),
        ("stop", 5, "`stop` is 5: "),
        ("model", 5, "`model` is 5: "),
        ("prompt", 5, "`prompt` is 5: Input should be a valid string; expected a string, a list"),
        ("prompt", ["x"] * 1025, "at most 1024 strings or lists of token ids"),
        ("stream_options", {"include_usage": 1}, "Input should be a valid boolean"),
    ],
)
def test_bad_values_are_named_with_what_is_expected(field: str, value: Any, message: str) -> None:
    error = refused(CompletionRequest, {"prompt": "x", "stream": True, field: value})
    assert message in str(error)
    assert str(error.param).split(".")[0] == field


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [[1], [None]]}, "prompt.1.0"),
        ({"prompt": ["a", 1.5]}, "prompt.1"),
        ({"prompt": "x", "stop": ["a", ""]}, "stop.1"),
    ],
)
def test_param_is_the_path_of_the_value(body: dict[str, Any], param: str) -> None:
    assert refused(CompletionRequest, body).param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool"}, "messages.0.content"),
        ({"role": "assistant", "tool_calls": []}, "messages.0.content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages.0.tool_calls"),
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "messages.0.tool_call_id"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
            "messages.0.tool_calls.0.type",
        ),
        *(
            (
                {"role": "assistant", "tool_calls": [called_with(arguments)]},
                "messages.0.tool_calls.0.function.arguments",
            )
            for arguments in (5, "{", "[1]", "[" * 99 + "]" * 99, "NaN", '{"a": 1e999}')
        ),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": "x", "tool_calls": [1]}, "messages.0.tool_calls.0"),
        ({"role": "", "content": "x"}, "messages.0.role"),
        ({"role": "x" * 65, "content": "x"}, "messages.0.role"),
        ({"role": "user", "contents": "x"}, "messages.0.content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages.0.content.0.type",
        ),
        ("hello", "messages.0"),
    ],
)
def test_bad_messages_are_named_by_their_path(message: Any, param: str) -> None:
    assert refused(ChatRequest, {"messages": [message]}).param == param


def test_missing_and_empty_fields_are_named() -> None:
    assert str(refused(CompletionRequest, {})).startswith("`prompt` is missing; expected a string")
    assert str(refused(ChatRequest, {})).startswith("`messages` is missing; expected a list of mes")
    assert "`messages` is []: List should have at least 1 item" in str(
        refused(ChatRequest, {"messages": []})
    )


def test_unknown_field_is_named() -> None:
    error = refused(CompletionRequest, {"prompt": "x", "temprature": 0})
    assert str(error) == (
        "`temprature` is not a known field; leave it out; did you mean temperature?"
    )
    assert error.param == "temprature"
    assert refused(ChatRequest, {"messages": [USER], "prompt": "x"}).param == "prompt"


@pytest.mark.parametrize(
    ("kind", "body", "param", "meant"),
    [
        (CompletionRequest, {"promt": "x"}, "promt", "prompt"),
        (CompletionRequest, {"prompt": "x", "max_token": 1}, "max_token", "max_tokens"),
        (
            CompletionRequest,
            {"prompt": "x", "stream": True, "stream_options": {"include_usages": True}},
            "stream_options.include_usages",
            "include_usage",
        ),
        (ChatRequest, {"message": [USER]}, "message", "messages"),
        (ClassifyRequest, {"input": "x", "text_pairs": "y"}, "text_pairs", "text_pair"),
        (EmbeddingRequest, {"inputs": "x"}, "inputs", "input"),
        (TokenizeRequest, {"promt": "x"}, "promt", "prompt"),
        (DetokenizeRequest, {"token": [1]}, "token", "tokens"),
    ],
)
def test_misspelt_fields_are_answered_with_the_one_that_was_meant(
    kind: type[StrictBody], body: dict[str, Any], param: str, meant: str
) -> None:
    error = refused(kind, body)
    assert error.param == param
    assert str(error).endswith(f"not a known field; leave it out; did you mean {meant}?")


@pytest.mark.parametrize("body", [None, 5, "x", [], [{"prompt": "x"}]])
def test_body_that_is_no_object_is_refused(body: Any) -> None:
    assert "the body must be a JSON object" in str(refused(CompletionRequest, body))


def test_null_means_absent() -> None:
    fields = ["model", "temperature", "top_p", "seed", "stop", "stream", "max_tokens", "echo"]
    nulls = dict.fromkeys([*fields, *NEUTRAL, *IGNORED])
    assert read(CompletionRequest, {"prompt": "x", **nulls}) == (
        read(CompletionRequest, {"prompt": "x"})
    )
    message = {**USER, "tool_calls": None, "refusal": None, "name": None}
    assert read(ChatRequest, {"messages": [message], **nulls}) == (
        read(ChatRequest, {"messages": [USER]})
    )


def read(kind: type[StrictBody], body: Any) -> StrictBody:
    return read_body(json.dumps(body).encode(), kind)


@pytest.mark.parametrize("name", sorted(NEUTRAL.keys() - CompletionRequest.model_fields.keys()))
def test_parameter_without_effect_is_accepted_only_where_it_asks_for_nothing(name: str) -> None:
    for value in NEUTRAL[name]:
        CompletionRequest.model_validate({"prompt": "x", name: value})
        ChatRequest.model_validate({"messages": [USER], name: value})
    error = refused(CompletionRequest, {"prompt": "x", name: "something else"})
    assert str(error).startswith(f"`{name}` is not supported; leave it out")
    assert error.param == name


def test_neutral_numbers_and_booleans_are_told_apart() -> None:
    assert refused(CompletionRequest, {"prompt": "x", "best_of": True}).param == "best_of"
    assert str(refused(CompletionRequest, {"prompt": "x", "best_of": 5})) == (
        "`best_of` is not supported; leave it out or send 1"
    )


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_parameters_that_only_identify_the_caller_are_ignored(name: str) -> None:
    assert CompletionRequest.model_validate({"prompt": "x", name: {"any": "thing"}}) == (
        CompletionRequest.model_validate({"prompt": "x"})
    )


def test_top_logprobs_need_logprobs() -> None:
    error = refused(ChatRequest, {"messages": [USER], "top_logprobs": 2})
    assert str(error) == "`top_logprobs` is only for `logprobs: true`; leave it out"
    assert refused(ChatRequest, {"messages": [USER], "logprobs": 3}).param == "logprobs"
    body = {"messages": [USER], "logprobs": False, "top_logprobs": 0}
    assert ChatRequest.model_validate(body).num_logprobs is None


def test_stream_options_need_a_stream() -> None:
    error = refused(CompletionRequest, {"prompt": "x", "stream_options": {"include_usage": True}})
    assert str(error) == "`stream_options` is only for `stream: true`; leave it out"


def test_text_parts_are_joined_by_newlines_unless_the_template_reads_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": parts, "name": "ann"}]}
    )
    message = body.messages[0].variables
    assert message == {"role": "user", "content": parts, "name": "ann"}
    assert chat_template().render([message]) == f"{BOS}user: one\ntwo\nassistant:"
    source = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}"
    template = ChatTemplate.load(Path(), {"chat_template": source}, {})
    assert template is not None
    assert template.render([message]) == "[one][two]"
