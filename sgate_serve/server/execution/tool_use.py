"""How a job reads tool calls in the model's text, and the grammar of those that must be valid."""

from collections.abc import Mapping
from dataclasses import dataclass

from sgate_serve.engines.contract import Grammar
from sgate_serve.server.protocol.generation_requests import ChatRequest
from sgate_serve.server.protocol.tools import NamedTool, callable_tools
from sgate_serve.server.served_model import ServedModel
from sgate_serve.text.tool_calls import CallOptions, CallParser
from sgate_serve.text.tool_grammars import CallGrammar


@dataclass(frozen=True)
class ToolUse:
    """How calls are read; `markers` are the special tokens that show where they are."""

    options: CallOptions
    markers: Mapping[int, str]

    def parser(self) -> CallParser:
        """Return a parser for one choice."""
        return CallParser(self.options)


def tool_use(body: ChatRequest, model: ServedModel) -> ToolUse | None:
    """Return how calls of the body's tools are read; None if there are no tools.

    Raises RequestError if the model's template shows no tools.
    """
    if not body.shown_tools:
        return None
    own = model.require_tool_format()
    options = CallOptions(
        own,
        frozenset(tool.function.name for tool in body.shown_tools),
        body.constrains_calls,
        body.parallel_tool_calls,
        body.must_call,
    )
    special = model.require_codec("tools").special_tokens_in(own.markers)
    return ToolUse(options, {index: text for text, index in special.items()})


def call_grammar(body: ChatRequest, use: ToolUse, model: ServedModel) -> Grammar | None:
    """Compile the grammar of an answer that may have calls; None if it may be any text."""
    if not body.constrains_calls:
        return None
    grammar = CallGrammar(
        use.options.format,
        callable_tools(body.shown_tools, body.tool_choice),
        {text: index for index, text in use.markers.items()},
        is_parallel=body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool),
        allows_text=not body.must_call,
        answer=None if body.must_call else body.grammar,
    )
    return grammar.compile(model.grammar_compiler("tools"))
