"""Tools in chat templates: what models see, as in transformers, and which format they write."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.server.protocol.generation_requests import ChatRequest
from sgate_serve.server.protocol.strict_body import read_body
from sgate_serve.text.chat_template import ChatTemplate
from sgate_serve.text.tokenization import TextCodec
from sgate_serve.text.tool_formats import FORMATS, recognised_format
from tests.text_model import EOS, write_tokenizer
from tests.tool_templates import ARGUMENTS, CLOCK, QWEN25, TEMPLATES, WEATHER, conversation

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", TEMPLATES)
def test_tools_and_calls_are_shown_as_transformers_shows_them(kind: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=TEMPLATES[kind], eos_token=EOS)
    codec = TextCodec.load(tmp_path)
    assert codec is not None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tools in ([WEATHER, CLOCK], [CLOCK], None):
        body = {"messages": conversation(json.dumps(ARGUMENTS)), "tools": tools}
        request = read_body(json.dumps(body).encode(), ChatRequest)
        variables = [message.variables for message in request.messages]
        expected = theirs.apply_chat_template(
            conversation(ARGUMENTS), tools=tools, add_generation_prompt=True, tokenize=False
        )
        assert codec.render_chat(variables, request.options) == expected
        assert "Zürich" in expected
        assert ("get_weather" in expected.partition("the weather?")[0]) is (
            tools is not None and WEATHER in tools
        )


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_format_is_the_one_that_the_template_shows(kind: str) -> None:
    template = ChatTemplate.load(Path(), {"chat_template": TEMPLATES[kind]}, {})
    assert template is not None
    assert template.shows_tools
    assert template.tool_format is FORMATS[kind]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral_args"),
        ("{{ '<tool_call>\n<function=' + name + '>' }}", None),
        ("{{ '<tool_call>' + name + '\n<arg_key>' }}", None),
        ("{{ tools }}", None),
        ('{"name": "f", "tool_name": "f", "parameters": {}}', None),
    ],
)
def test_other_formats(source: str, name: str | None) -> None:
    assert recognised_format(source) is (None if name is None else FORMATS[name])


def test_a_template_of_its_own_for_tools_is_used_with_tools() -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": QWEN25},
    ]
    template = ChatTemplate.load(Path(), {"chat_template": named}, {})
    assert template is not None
    assert (template.reads_tools, template.shows_tools) == (False, True)
    assert template.tool_format is FORMATS["hermes"]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    assert template.render(messages) == "plain"
    body = ChatRequest.model_validate({"messages": messages, "tools": [CLOCK]})
    assert "clock" in template.render(messages, body.options)


def test_without_mention_no_tools_are_shown() -> None:
    template = ChatTemplate.load(Path(), {"chat_template": "{{ messages }}"}, {})
    assert template is not None
    assert (template.shows_tools, template.tool_format) == (False, None)
