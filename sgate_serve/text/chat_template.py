"""A model's chat template: Jinja from the model folder, rendered in a sandbox.

Templates get the same environment as in transformers: `raise_exception`, `strftime_now`, an
unescaped `tojson`, loop controls, and the special tokens as variables. Whatever a template raises
becomes a refused request.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sgate_serve.errors import CheckpointError, RequestError

TEMPLATE_FILE = "chat_template.jinja"
DEFAULT_NAME = "default"
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the special tokens it may use."""

    template: Template
    special_tokens: Mapping[str, str]

    @classmethod
    def load(
        cls, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """Read the template of the folder or of its tokenizer config; None if there is neither.

        Raises CheckpointError for an invalid template.
        """
        path = folder / TEMPLATE_FILE
        source: Any = config.get("chat_template")
        if path.exists():
            source = path.read_text(encoding="utf-8")
        try:
            if isinstance(source, list):
                source = _default_of(source)
            if source is None:
                return None
            return cls(_environment().from_string(source), special_tokens)
        except (TemplateError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder}: the chat template is not a valid Jinja template ({error}); correct "
                f"{TEMPLATE_FILE} or `chat_template` in tokenizer_config.json"
            ) from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the conversation as text, ending where the assistant's turn begins.

        Raises RequestError with the template's own message if it refuses the messages.
        """
        try:
            return self.template.render(
                messages=messages, add_generation_prompt=True, **self.special_tokens
            )
        except RENDER_ERRORS as error:
            raise RequestError(
                f"the model's chat template refused the messages: {error}", param="messages"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _default_of(templates: list[Any]) -> Any:
    """Return the template named `default` from transformers' list of named templates."""
    named = {entry.get("name"): entry.get("template") for entry in templates}
    return named.get(DEFAULT_NAME)


# Jinja's own filter escapes HTML, which would change the prompt.
def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(
        value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
