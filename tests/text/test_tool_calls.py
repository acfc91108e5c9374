"""Calls in the text of each format: whole, in pieces of any length, and written in odd ways."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgate_serve.text.tool_calls import CallOptions, CallParser
from sgate_serve.text.tool_formats import (
    FORMATS,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    SMOLLM2,
    ToolFormat,
)

Answer = tuple[str, list[tuple[str, str]]]

NAMES = frozenset({"get_weather", "f"})
PARIS = '{"city": "Paris </tool_call> \\" {[ 🚀", "days": 2}'
W = f'{{"name": "get_weather", "arguments": {PARIS}}}'
F = '{"name": "f", "arguments": {}}'
WL, FL = (text.replace("arguments", "parameters") for text in (W, F))
BOTH = [("get_weather", PARIS), ("f", "{}")]

# What models write: format, text, its content and its calls.
WRITTEN: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, f"<tool_call>\n{W}\n</tool_call>", "", BOTH[:1]),
    (HERMES, f"<tool_call>\n{W}\n</tool_call>\n<tool_call>\n{F}\n</tool_call>\n", "", BOTH),
    (HERMES, f"I look. \n<tool_call>{W}</tool_call><tool_call>{F}", "I look.", BOTH),
    (HERMES, f"a < b <tool_call>{F}</tool_call> so", "a < b so", BOTH[1:]),
    (SMOLLM2, f"<tool_call>[{W}, {F}]</tool_call>", "", BOTH),
    (SMOLLM2, f"<tool_call>[\n{W},\n{F}\n]</tool_call>", "", BOTH),
    (LLAMA3, WL, "", BOTH[:1]),
    (LLAMA3, f" {WL}; {FL}", "", BOTH),
    (LLAMA3, f"<|python_tag|>{W}\n{F}\n", "", BOTH),
    (LLAMA3, '{"type": "function", "name": "f", "parameters": {}}', "", BOTH[1:]),
    (MISTRAL, f"[TOOL_CALLS] [{W}, {F}]", "", BOTH),
    (MISTRAL, f'[TOOL_CALLS][{F[:-1]}, "id": "123456789"}}]', "", BOTH[1:]),
    (MISTRAL, f"Well.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]f[ARGS]{{}}", "Well.", BOTH),
    (MISTRAL_ARGS, f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]f{{}}", "", BOTH),
    (MISTRAL_ARGS, "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", "", BOTH[1:]),
    (MISTRAL_ARGS, f"[TOOL_CALLS] [{W}, {F}]", "", BOTH),
]
# What is no call stays as it is.
OPEN = '<tool_call>{"name": "f", '
PLAIN = [
    (HERMES, "no call at all \n"),
    (HERMES, "<tool_cal"),
    (HERMES, "<tool_call>\nf()\n</tool_call>"),
    (HERMES, f'{OPEN}"arguments": {{"a": 1}}</tool_call>'),
    (HERMES, f'{OPEN}"arguments": {{"a": NaN}}}}</tool_call>'),
    (HERMES, f'{OPEN}"arguments": {{"a": }}}}</tool_call> and on'),
    (HERMES, f'{OPEN}"arguments": {{"a": "x\n"}}}}</tool_call>'),
    (HERMES, f'{OPEN}"arguments": "{{}}"}}</tool_call>'),
    (HERMES, f'{OPEN}"arguments": null}}</tool_call>'),
    (HERMES, f"{OPEN[:-2]}}}</tool_call>"),
    (HERMES, f'{OPEN}"arguments": {{}}]</tool_call>'),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (HERMES, f"<tool_call>{'[' * 5000}{']' * 5000}</tool_call>"),
    (HERMES, f'{OPEN}"arguments": {{"a": {"1" * 5000}}}}}</tool_call>'),
    (SMOLLM2, f"<tool_call>[{F}, 5]</tool_call>"),
    (SMOLLM2, "<tool_call>[]</tool_call>"),
    (LLAMA3, f"Call {FL}"),
    (LLAMA3, '{"name": "Anna", "parameters": {}}'),
    (LLAMA3, '{"name": "f", "parameters": {"a"'),
    (LLAMA3, "<|python_tag|>print(1)"),
    (MISTRAL, "[TOOL_CALLS] nothing"),
    (MISTRAL_ARGS, f"[TOOL_CALLS]{'f' * 600}[ARGS]{{}}"),
    (MISTRAL_ARGS, "[TOOL_CALLS]other[ARGS]{}"),
    (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]{]"),
]
TEXTS = [(own, text) for own, text, *_ in WRITTEN] + PLAIN


def read(options: CallOptions, pieces: Sequence[str]) -> Answer:
    """The content and the calls of a text that comes in these pieces."""
    parser = CallParser(options)
    parsed = [*map(parser.push, pieces), parser.finish()]
    calls: list[tuple[str, str]] = []
    for piece in (piece for part in parsed for piece in part.calls):
        if piece.id is not None:
            assert piece.index == len(calls)
            assert piece.name is not None
            assert piece.arguments == ""
            calls.append((piece.name, ""))
        else:
            name, arguments = calls[piece.index]
            calls[piece.index] = name, arguments + piece.arguments
    assert parser.num_calls >= len(calls)
    return "".join(part.content for part in parsed), calls


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize(("own", "text", "content", "calls"), WRITTEN)
def test_calls_are_read_in_one_piece_and_cut_anywhere(
    own: ToolFormat, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    options = CallOptions(own, NAMES)
    assert read(options, [text]) == (content, calls)
    for cut in range(len(text)):
        assert read(options, pieces_of(text, [cut])) == (content, calls)
    assert read(options, list(text)) == (content, calls)
    one = CallOptions(own, NAMES, is_parallel=False)
    assert read(one, list(text)) == (content, calls[:1])


@pytest.mark.parametrize(("own", "text"), PLAIN)
def test_what_is_no_call_is_content(own: ToolFormat, text: str) -> None:
    options = CallOptions(own, NAMES)
    assert read(options, [text]) == (text, [])
    assert read(options, list(text)) == (text, [])


FRAGMENTS = [
    W,
    F,
    WL,
    FL,
    "{}",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    ",",
    ";",
    " ",
    "\n",
    "a",
    "get_",
    "f",
]
FRAGMENTS += [part for own in FORMATS.values() for part in (own.begin, own.end, own.after) if part]


@settings(max_examples=400, deadline=None)
@given(
    own=st.sampled_from(list(FORMATS.values())),
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    constrained=st.booleans(),
)
@example(own=LLAMA3, text=f"{FL};", cuts=[len(FL)], constrained=False)
def test_any_text_is_read_alike_in_any_pieces(
    own: ToolFormat, text: str, cuts: list[int], constrained: bool
) -> None:
    options = CallOptions(own, NAMES, constrained)
    content, calls = read(options, [text])
    assert read(options, pieces_of(text, cuts)) == (content, calls)
    assert read(options, list(text)) == (content, calls)
    if not constrained:
        assert all(name in NAMES and isinstance(json.loads(own), dict) for name, own in calls)
        assert calls or content == text


@pytest.mark.parametrize("own", FORMATS.values(), ids=lambda own: own.name)
def test_arguments_of_constrained_calls_are_passed_on_at_once(own: ToolFormat) -> None:
    call = own.head("get_weather") + PARIS + own.tail
    several = [call, own.head("f") + "{}" + own.tail]
    opens = "[" if own.is_array else own.closes
    begin = "" if own.is_bare else own.begin
    joint = f"{own.closes}{own.end}{own.between}{begin}{opens}"
    text = begin + opens + (own.separator or joint).join(several) + own.closes + own.end
    options = CallOptions(own, NAMES, is_constrained=True)
    assert read(options, [text]) == read(options, list(text)) == ("", BOTH)
    forced = replace(options, must_call=True)
    for end in range(len(text)):
        assert read(forced, [text[:end]])[0] == ""  # also if the limit cuts a marker
    parser = CallParser(options)
    sent = [parser.push(character).calls for character in text[: text.index("Paris")]]
    assert [piece.arguments for calls in sent for piece in calls] == ["", *'{"city": "']


def test_ids_are_new_and_those_of_mistral_as_its_templates_want_them() -> None:
    assert HERMES.new_id() != HERMES.new_id()
    assert re.fullmatch("call_[0-9a-f]{24}", HERMES.new_id())
    assert re.fullmatch("[A-Za-z0-9]{9}", MISTRAL_ARGS.new_id())
