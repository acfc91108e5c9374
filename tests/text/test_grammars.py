"""Grammars on tokenizers of every kind: what may be written is what the grammar says."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from sgate_serve.errors import RequestError
from sgate_serve.text.grammar_vocabulary import GrammarVocabulary
from sgate_serve.text.grammars import (
    MAX_CHARACTERS,
    MAX_MESSAGE,
    GrammarCompiler,
    GrammarKind,
    GrammarText,
)
from sgate_serve.text.tokenization import TextCodec
from tests.text.small_tokenizers import llama, qwen2, roberta, xlm_roberta
from tests.text_model import BOS, EOS, byte_tokenizer

CODEC = TextCodec(byte_tokenizer())
PADDED = CODEC.tokenizer.get_vocab_size() + 5
COMPILER = GrammarCompiler(CODEC, PADDED)
ODD = ['a"b', "x\ny", "🚀 ü\\", BOS, EOS, " the  cat's", "/i", "\x00\b\f\r\x7f", "a|b", "hello"]
LONGEST_SECONDS = 5.0


def text_of(kind: GrammarKind, text: str, compiler: GrammarCompiler, codec: TextCodec) -> str:
    """Write a text of random tokens that the grammar allows, until it is complete.

    It is decoded like an answer, after a prompt.
    """
    state = compiler.compile(GrammarText(kind, text, "p")).start()
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    while state.allowed.any() and not (state.may_end and rng.random() < 0.2):
        tokens.append(int(rng.choice(np.flatnonzero(state.allowed))))
        state.accept(tokens[-1])
    assert state.may_end
    shown = codec.detokenizer(codec.encode("the cat"))
    return "".join(map(shown.push, tokens)) + shown.flush()


@pytest.mark.parametrize("make", [byte_tokenizer, llama, qwen2, roberta, xlm_roberta])
def test_texts_match_their_grammar_with_any_tokenizer(make: Callable[[], Tokenizer]) -> None:
    codec = TextCodec(make())
    compiler = GrammarCompiler(codec, codec.tokenizer.get_vocab_size())
    writes_any_byte = make is not xlm_roberta
    for pattern in ("[a-c]{2,5}", "the cat( sat)? on", "(a|e)t+ *") + (
        (r"x/[0-9]{2}\|\d", "[^b]{3}", "座.った", "a\n#\\{") if writes_any_byte else ()
    ):
        assert re.fullmatch(pattern, text_of("regex", pattern, compiler, codec)), pattern
    texts = ODD if writes_any_byte else ["the cat", "a mat", " on"]
    for text in texts:
        assert text_of("choice", json.dumps([text]), compiler, codec) == text
    assert text_of("choice", json.dumps(texts), compiler, codec) in texts


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('start: "a" b+\nb: /[xy]/', "a[xy]+"),
        ("%llguidance {}\nstart: /[0-9]{2}/", "[0-9]{2}"),
        ('root ::= "a" b+\nb ::= [xy]', "a[xy]+"),
    ],
)
def test_grammars_are_lark_or_gbnf(grammar: str, pattern: str) -> None:
    assert re.fullmatch(pattern, text_of("grammar", grammar, COMPILER, CODEC))


def test_compact_json_has_no_space_between_values() -> None:
    schema = json.dumps({"type": "array", "items": {"const": " "}, "minItems": 3, "maxItems": 3})
    state = COMPILER.compile(GrammarText("json", schema, "p", compact=True)).start()
    for token in CODEC.encode('[" "," "," "]', add_special_tokens=False):
        assert state.allowed[token]
        assert not any(state.allowed[index] for index in CODEC.encode("\n"))
        state.accept(token)
    assert state.may_end
    assert not state.allowed.any()


def test_what_must_come_is_written_without_a_space_before_it() -> None:
    pieces = [("<unk>", 0.0), ("\u2581the", -1.0), ("the", -2.0), ("\u2581", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert tokenizer.encode("the").ids == [1]
    assert GrammarVocabulary(TextCodec(tokenizer), 4)(b"the") == [2]


def test_what_must_come_is_written_as_the_tokenizer_writes_it() -> None:
    vocabulary = GrammarVocabulary(CODEC, PADDED)
    for text in ("the cat sat", " on the mat", "a gate"):
        assert vocabulary(text.encode()) == [*CODEC.encode(text, add_special_tokens=False)]


def test_padding_and_special_tokens_are_never_allowed() -> None:
    state = COMPILER.compile(GrammarText("regex", r"(?s).*", "p")).start()
    special = [CODEC.tokenizer.token_to_id(name) for name in (BOS, EOS)]
    assert state.allowed.shape == (PADDED,)
    assert not state.allowed[[*special, *range(PADDED - 5, PADDED)]].any()
    assert state.allowed.sum() > PADDED / 2


def test_a_model_may_have_fewer_tokens_than_its_tokenizer() -> None:
    state = GrammarCompiler(CODEC, 300).compile(GrammarText("regex", "[a-z ]+", "p")).start()
    assert state.allowed.shape == (300,)
    assert state.allowed.any()


def test_texts_of_one_grammar_do_not_meet() -> None:
    grammar = COMPILER.compile(GrammarText("choice", '["ab", "cd"]', "p"))
    first, second = grammar.start(), grammar.start()
    before = second.allowed.copy()
    [token] = CODEC.encode("a", add_special_tokens=False)
    first.accept(token)
    assert not first.allowed[token]
    assert np.array_equal(second.allowed, before)
    second.accept(token)
    assert np.array_equal(first.allowed, second.allowed)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
        ("regex", "", "it allows no text but an empty one"),
        ("choice", '["", ""]', "it allows no text but an empty one"),
        ("json", '{"type": "strin"}', "Invalid type: strin"),
        ("json", '{"enum": []}', "Unsatisfiable schema"),
        ("json", '{"uniqueItems": true}', 'Unimplemented keys: ["uniqueItems"]'),
        ("json", '{"$ref": "https://x.example/y"}', "does not fetch resources"),
        ("json", '{"$ref": "#"}', "no text follows it"),
        ("json", "[1]", "Expecting object schema"),
        ("grammar", "start: foo", "unknown name"),
        ("grammar", "foo", "it is neither Lark, which has a rule `start:`, nor GBNF"),
        ("grammar", "root ::= foo", "Rule 'foo' not found"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    kind: GrammarKind, text: str, message: str
) -> None:
    with pytest.raises(RequestError, match="`param` cannot be followed: ") as caught:
        COMPILER.compile(GrammarText(kind, text, "param"))
    assert message in str(caught.value)
    assert (caught.value.param, caught.value.status) == ("param", 400)


def doubling(rule: str, last: str, count: int) -> str:
    """A grammar whose only text is as long as two to the power of `count`."""
    rules = (f"{rule}{index}: {rule}{index + 1} {rule}{index + 1}" for index in range(count))
    return "\n".join([f"start: {rule}0", *rules, f"{rule}{count}: {last}"])


def crossed(width: int) -> dict[str, Any]:
    """A schema that is met in `width` to the power of `width` ways."""
    ways = [
        [{"properties": {f"p{row}_{column}": {"type": "string"}}} for column in range(width)]
        for row in range(width)
    ]
    return {"type": "object", "allOf": [{"anyOf": way} for way in ways]}


HOSTILE: list[tuple[GrammarKind, str]] = [
    ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    ("regex", ".*a.{200}b.*"),
    ("regex", r"\p{L}{1,5000}" * 5),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("json", json.dumps(crossed(8))),
    ("json", '{"items":' * 3000 + "{}" + "}" * 3000),
    ("json", json.dumps({"type": "integer", "multipleOf": 7919, "maximum": 10**15})),
    ("grammar", doubling("r", '"a"', 40)),
    ("grammar", doubling("T", '"a"', 40)),
    ("grammar", 'start: e\ne: e e | "a" | e e e | '),
    ("grammar", 'start: (("a" | "b"){0,3000}){0,3000}'),
    ("grammar", "start: " + "(" * 4000 + '"a"' + ")" * 4000),
    ("grammar", "root ::= " + "(" * 4000),
]


@pytest.mark.parametrize(("kind", "text"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_grammars_end_soon_one_way_or_the_other(kind: GrammarKind, text: str) -> None:
    start = time.monotonic()
    message = refusal_within(GrammarText(kind, text, "p"), num_tokens=300)
    assert time.monotonic() - start < LONGEST_SECONDS
    assert len(message) < MAX_MESSAGE + 50


def refusal_within(source: GrammarText, num_tokens: int) -> str:
    """Why a grammar is refused before it is complete or has so many tokens; empty if it is not."""
    rng = np.random.default_rng(0)
    try:
        state = COMPILER.compile(source).start()
        for _ in range(num_tokens):
            if state.allowed.any():
                state.accept(int(rng.choice(np.flatnonzero(state.allowed))))
    except RequestError as error:
        return str(error)
    return ""


def test_limits_end_texts_that_have_begun() -> None:
    source = GrammarText("regex", "((a{1,1000}){1,1000}){1,1000}", "p")
    COMPILER.compile(source)
    assert "lexer error: too many expressions" in refusal_within(source, 300)


@pytest.mark.parametrize("kind", MAX_CHARACTERS)
def test_long_grammars_are_refused_by_their_length(kind: GrammarKind) -> None:
    limit = MAX_CHARACTERS[kind]
    with pytest.raises(RequestError, match=f"it has {limit + 1} characters; at most {limit} are"):
        COMPILER.compile(GrammarText(kind, "x" * (limit + 1), "p"))


def test_tokens_that_cannot_write_what_must_come_are_refused() -> None:
    codec = TextCodec(xlm_roberta())
    compiler = GrammarCompiler(codec, codec.tokenizer.get_vocab_size())
    with pytest.raises(RequestError, match="or none that the tokens of this model can write"):
        compiler.compile(GrammarText("choice", '["ж"]', "p"))


def test_the_server_does_not_load_llguidance_by_itself() -> None:
    check = "import sgate_serve.server, sys; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", check], check=False).returncode == 0
