"""Which texts the grammars of tool calls allow; that real models follow them is tested at HTTP."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sgate_serve.errors import RequestError
from sgate_serve.text.grammars import GrammarCompiler, GrammarText
from sgate_serve.text.tool_formats import (
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    SMOLLM2,
    ToolFormat,
)
from sgate_serve.text.tool_grammars import SPACING, CallableTool, CallGrammar
from tests.server.live import CODEC, VOCAB_SIZE
from tests.text_model import BOS, EOS

SCHEMA = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/letter"}, "b": {"enum": [1, None]}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"letter": {"enum": ["u", "v"]}},
}
TOOLS = [CallableTool("f", SCHEMA, "f"), CallableTool("g", None, "g")]
COMPILER = GrammarCompiler(CODEC, VOCAB_SIZE)
F, G = '{"name": "f", "arguments": {"a": "u", "b": null}}', '{"name": "g", "arguments": {}}'
FL, GL = (text.replace("arguments", "parameters") for text in (F, G))
HERMES_F, HERMES_G = (f"<tool_call>\n{text}\n</tool_call>" for text in (F, G))
# The special tokens that the tokenizer has stand for those of a format.
FIRST, SECOND = {"[TOOL_CALLS]": 0}, {"[TOOL_CALLS]": 0, "[ARGS]": 1}


def allows(text: str, own: ToolFormat, special: Mapping[str, int], **options: Any) -> bool:
    """Whether a text may be the whole answer."""
    grammar = CallGrammar(own, TOOLS, special, **options).compile(COMPILER)
    for marker, index in special.items():
        text = text.replace(marker, (BOS, EOS)[index])
    state = grammar.start()
    for token in CODEC.encode(text, add_special_tokens=False):
        if not state.allowed[token]:
            return False
        state.accept(token)
    return state.may_end or not state.allowed.any()


@pytest.mark.parametrize(
    ("own", "special", "one", "several"),
    [
        (HERMES, {}, HERMES_F, f"{HERMES_F}\n{HERMES_G}"),
        (SMOLLM2, {}, f"<tool_call>[{F}]</tool_call>", f"<tool_call>[{F}, {G}]</tool_call>"),
        (LLAMA3, {}, FL, f"{FL}; {GL}"),
        (MISTRAL, {}, f"[TOOL_CALLS] [{F}]", f"[TOOL_CALLS][{F}, {G}]"),
        (MISTRAL, FIRST, f"[TOOL_CALLS] [{F}]", f"[TOOL_CALLS][{F}, {G}]"),
        (
            MISTRAL_ARGS,
            SECOND,
            '[TOOL_CALLS]f[ARGS]{"a": "v"}',
            '[TOOL_CALLS]f[ARGS]{"a": "v"}[TOOL_CALLS]g[ARGS]{}',
        ),
    ],
)
def test_calls_are_those_of_the_format(
    own: ToolFormat, special: Mapping[str, int], one: str, several: str
) -> None:
    for options in ({}, {"allows_text": True}, {"answer": GrammarText("json", "{}", "x")}):
        assert allows(one, own, special, **options)
        assert allows(several, own, special, **options)
        assert not allows(several, own, special, is_parallel=False, **options)
        assert not allows(f"{one} and", own, special, **options)
        wrong = one.replace('"u"', '"x"').replace('"v"', '"x"')
        assert not allows(wrong, own, special, **options)
        assert allows("Hello", own, special, **options) is ("allows_text" in options)
        assert allows("[1]", own, special, **options) is bool(options)
    if not own.is_bare:
        assert allows(f"Hello{one}", own, special, allows_text=True)
        assert not allows(f"Hello{one}", own, special)
    else:
        # A marker that is no special token cannot be text, which would be read as a call.
        assert not allows(f"Hello {own.begin}{{oops}}", own, special, allows_text=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": ["object", "null"]}, 'must be "object", as arguments have names'),
        ({"type": "object", "properties": {"a": {"type": "x"}}}, "cannot be followed: Invalid"),
        ({"$ref": "#/$defs/missing"}, "cannot be followed"),
    ],
)
def test_the_tool_with_bad_parameters_is_named(parameters: dict[str, Any], message: str) -> None:
    tools = [*TOOLS, CallableTool("bad", parameters, "tools.2")]
    with pytest.raises(RequestError, match=message) as raised:
        CallGrammar(HERMES, tools, {}).compile(COMPILER)
    assert raised.value.param == "tools.2"


def test_an_answer_that_cannot_be_followed_is_named() -> None:
    answer = GrammarText("json", '{"type": "x"}', "response_format")
    with pytest.raises(RequestError) as raised:
        CallGrammar(HERMES, TOOLS, {}, answer=answer).compile(COMPILER)
    assert raised.value.param == "response_format"


def test_too_many_tools_are_refused_by_the_length_of_their_grammar() -> None:
    tools = [CallableTool(f"f{index}", SCHEMA, "x") for index in range(400)]
    with pytest.raises(RequestError, match=r"`tools` cannot be followed: it has \d+ characters"):
        CallGrammar(HERMES, tools, {}).compile(COMPILER)


def test_separators_of_json_cannot_be_changed() -> None:
    own = {"x-guidance": {"item_separator": "z", "key_separator": "x"}, **SCHEMA}
    assert json.loads(CallableTool("f", own, "f").schema.text)["x-guidance"] == SPACING
