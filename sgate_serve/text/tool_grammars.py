"""Grammars of answers that call tools: whatever follows one is a valid call in the model's format.

The arguments are valid for the parameters of the tool. White space is that of templates, which
write JSON as Python does; it leaves a small model no room to lose itself in.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgate_serve.errors import RequestError
from sgate_serve.text.grammars import MAX_CHARACTERS, Grammar, GrammarCompiler, GrammarText
from sgate_serve.text.tool_formats import ToolFormat

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
PARAM = "tools"


@dataclass(frozen=True)
class CallableTool:
    """A function that may be called: its parameters, a JSON schema, are at `param` of a request."""

    name: str
    parameters: Mapping[str, Any] | None
    param: str

    @property
    def schema(self) -> GrammarText:
        """The arguments; raises RequestError for parameters that are no object."""
        own = dict(NO_PARAMETERS if self.parameters is None else self.parameters)
        if own.setdefault("type", "object") != "object":
            raise RequestError(
                f'`{self.param}.type` must be "object", as arguments have names', param=self.param
            )
        given = own.get("x-guidance", {})
        # Other separators would make arguments that are no JSON.
        own["x-guidance"] = given | SPACING if isinstance(given, dict) else given
        return GrammarText("json", json.dumps(own, ensure_ascii=False), self.param)


@dataclass(frozen=True)
class CallGrammar:
    """What an answer may be: calls of `tools`, or an `answer` in JSON instead, or any text before.

    `special` are the ids of those markers of the format that are special tokens.
    """

    format: ToolFormat
    tools: Sequence[CallableTool]
    special: Mapping[str, int]
    is_parallel: bool = True
    allows_text: bool = False
    answer: GrammarText | None = None

    def compile(self, compiler: GrammarCompiler) -> Grammar:
        """Return the grammar; raise RequestError naming the tool whose parameters are refused."""
        schemas = [tool.schema for tool in self.tools]
        whole = GrammarText("lark", self._text(schemas), PARAM)
        try:
            return compiler.compile(whole)
        except RequestError:
            if len(whole.text) <= MAX_CHARACTERS[whole.kind]:
                for part in (*schemas, *([] if self.answer is None else [self.answer])):
                    compiler.compile(part)
            raise

    def _text(self, schemas: Sequence[GrammarText]) -> str:
        """Return the grammar in Lark."""
        names = [f"call_{index}" for index in range(len(schemas))]
        rules = [self._start(), f"call: {' | '.join(names)}"]
        for name, tool, schema in zip(names, self.tools, schemas, strict=True):
            head = (_quoted(self.format.before + tool.name), self._marker(self.format.after))
            rules.append(f"{name}: {' '.join(head)} {name}_arguments {_quoted(self.format.tail)}")
            rules.append(f"{name}_arguments: %json {schema.text}")
        return "\n".join(rules)

    def _start(self) -> str:
        """Return the rule of the whole answer, and those of what there may be besides calls."""
        own = self.format
        begin = "" if own.is_bare else self._marker(own.begin)
        calls = "call"
        if self.is_parallel and own.separator is not None:
            calls = f"call ({_quoted(own.separator)} call)*"
        block = f"{own.opens} {calls} {_quoted(own.closes)} {self._marker(own.end)}"
        more = ""
        if self.is_parallel and own.separator is None:
            more = f"({_quoted(own.between)} {begin} {block})*"
        if self.answer is not None:
            return f"start: answer | {begin} {block} {more}\nanswer: %json {self.answer.text}"
        if not self.allows_text:
            return f"start: {begin} {block} {more}"
        marked = rf"/(?s:.*){re.escape(own.begin)}(?s:.*)/"
        if own.is_bare:
            unmarked = "" if own.begin in self.special else f" & ~{marked}"
            return f"start: TEXT | {block} {more}\nTEXT: /\\s*([^\\s{{](?s:.*))?/{unmarked}"
        if own.begin in self.special:
            return f"start: TEXT | TEXT {begin} {block} {more}\nTEXT: /(?s:.*)/"
        return (
            f"start: TEXT | before {block} {more}\nTEXT: /(?s:.*)/ & ~{marked}\n"
            f"before[suffix={begin}]: /(?s:.*)/"
        )

    def _marker(self, text: str) -> str:
        """Return a marker as a token if it is special, which text cannot be."""
        return f"<[{self.special[text]}]>" if text in self.special else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
