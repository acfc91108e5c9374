"""Grammars that a text must follow, compiled by llguidance to the tokens that may come next.

llguidance is loaded with the first grammar. Its limits bound the time and memory of a hostile one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import RequestError
from sgate_serve.text.grammar_vocabulary import guidance_tokenizer
from sgate_serve.text.tokenization import TextCodec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

GrammarKind = Literal["json", "regex", "choice", "grammar", "lark"]
# The longest text of each kind. What is not Lark is converted in Python, in quadratic time.
MAX_CHARACTERS: Mapping[GrammarKind, int] = {
    "json": 2**16,
    "regex": 2**14,
    "choice": 2**16,
    "grammar": 2**14,
    "lark": 2**16,
}
MAX_MESSAGE = 200
# Of a compiled grammar and of each step; llguidance's own defaults allow several times as much.
LIMITS = {
    "max_items_in_row": 1000,
    "step_max_items": 20_000,
    "step_lexer_fuel": 100_000,
    "max_lexer_states": 50_000,
}
# What tells Lark from the GBNF of llama.cpp, as in llguidance.
LARK_LINE = re.compile(r"%llguidance\b|start\s*+:")

# What has a meaning in a regular expression of Rust.
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


@dataclass(frozen=True)
class GrammarText:
    """A grammar in the words of a client; `param` is where the request has it.

    `json` is a JSON schema, `regex` an expression for the whole text, `choice` a JSON list of
    strings, `grammar` Lark or GBNF, `lark` our own Lark. In `compact` JSON there is no space
    between values.
    """

    kind: GrammarKind
    text: str
    param: str
    compact: bool = False

    def refusal(self, reason: str) -> RequestError:
        """Return the error of a grammar that cannot be followed."""
        brief = " ".join(reason.split())[:MAX_MESSAGE]
        return RequestError(f"`{self.param}` cannot be followed: {brief}", param=self.param)


class GrammarState:
    """How far one text has come: `allowed` [vocab] may follow, or the end if `may_end`.

    A grammar that is complete allows no token. The texts of one grammar share its automaton, which
    grows with them and whose size is limited.
    """

    def __init__(
        self, matcher: "LLMatcher", source: GrammarText, allowed: NDArray[np.bool_], may_end: bool
    ) -> None:
        self._matcher, self._source = matcher, source
        self.allowed, self.may_end = allowed, may_end

    @classmethod
    def first(cls, matcher: "LLMatcher", source: GrammarText, vocab_size: int) -> "GrammarState":
        """Return the state before the first token; raise RequestError for an invalid grammar."""
        state = cls(matcher, source, np.zeros(vocab_size, np.bool_), False)
        state._look_ahead()
        if state.may_end and not state.allowed.any():
            raise source.refusal("it allows no text but an empty one")
        return state

    def copy(self) -> "GrammarState":
        """Return a state of its own for another text that has come as far."""
        return GrammarState(self._matcher.deep_copy(), self._source, self.allowed, self.may_end)

    def accept(self, token: int) -> None:
        """Add an allowed token; raise RequestError if the grammar then exceeds a limit."""
        self._matcher.consume_token(token)
        self._look_ahead()

    def _look_ahead(self) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._source.refusal(_brief(self._matcher.get_error()))
        size = len(self.allowed)
        flags = np.unpackbits(bits, count=size + 1, bitorder="little").view(np.bool_)
        self.allowed, self.may_end = flags[:size], bool(flags[size])


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar, for any number of texts."""

    beginning: GrammarState

    def start(self) -> GrammarState:
        """Return the state before the first token of a text."""
        return self.beginning.copy()


class GrammarCompiler:
    """Compiles grammars for the tokens of one model, from any thread."""

    def __init__(self, codec: TextCodec, vocab_size: int) -> None:
        self._codec, self._vocab_size = codec, vocab_size
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None

    def compile(self, source: GrammarText) -> Grammar:
        """Return the grammar; raise RequestError for one that is too long, invalid or too large."""
        limit = MAX_CHARACTERS[source.kind]
        if len(source.text) > limit:
            raise source.refusal(f"it has {len(source.text)} characters; at most {limit} are read")
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, **LIMITS)  # type: ignore[arg-type]
        grammar = _guidance_grammar(source)
        matcher = LLMatcher(self._prepared(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise source.refusal(_brief(matcher.get_error()))
        return Grammar(GrammarState.first(matcher, source, self._vocab_size))

    def _prepared(self) -> "LLTokenizer":
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = guidance_tokenizer(self._codec, self._vocab_size)
            return self._tokenizer


def _guidance_grammar(source: GrammarText) -> str:
    """Return the grammar in llguidance's notation."""
    from llguidance import LLMatcher

    match source.kind:
        case "json":
            try:
                return LLMatcher.grammar_from_json_schema(
                    source.text, defaults={"whitespace_flexible": not source.compact}
                )
            except ValueError as error:
                raise source.refusal(str(error)) from error
        case "regex":
            return LLMatcher.grammar_from_regex(source.text)
        case "choice":
            # One automaton, whose size does not slow a step down. Lark knows no \b or \f.
            texts = (SPECIAL.sub(r"\\\g<0>", text) for text in json.loads(source.text))
            return LLMatcher.grammar_from_regex("|".join(texts))
        case "grammar":
            return LLMatcher.grammar_from_lark(_lark(source))
        case "lark":
            return LLMatcher.grammar_from_lark(source.text)


def _lark(source: GrammarText) -> str:
    """Return a grammar in Lark, converted if it is in GBNF."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if any(LARK_LINE.match(line.lstrip()) for line in source.text.splitlines()):
        return source.text
    try:
        return gbnf_to_lark(source.text)
    except Exception as error:  # it raises plain ones
        reason = f"it is neither Lark, which has a rule `start:`, nor GBNF: {error}"
        raise source.refusal(reason) from error


def _brief(message: str) -> str:
    """Return the reason in a message of llguidance, which may quote a whole grammar."""
    if message.startswith("NoExtension"):
        return "no text follows it, or none that the tokens of this model can write"
    reason = re.search("^error: (.+)", message, re.MULTILINE)
    return reason[1] if reason else message.partition("\n")[0]
