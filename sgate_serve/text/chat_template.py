"""A model's chat template: Jinja from the model folder, rendered in a sandbox.

Templates get the same environment as in transformers: `raise_exception`, `strftime_now`, an
unescaped `tojson`, loop controls, the special tokens as variables, and `tools` and `documents` as
none. Whatever a template raises becomes a refused request.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.text.content_parts import reads_parts

logger = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
# Further templates by name, which are never the default.
TEMPLATE_DIR = "additional_chat_templates"
DEFAULT_NAME = "default"


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As in transformers, the body has a scope of its own.
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the special tokens it may use.

    With `reads_parts`, it takes a message's content as a list of parts, not as their joined text.
    """

    template: Template
    special_tokens: Mapping[str, str]
    reads_parts: bool = False

    @classmethod
    def load(
        cls, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """Read the template of the folder or of its tokenizer config; None if there is neither.

        Raises CheckpointError for an invalid template.
        """
        environment = _environment()
        # Jinja compiles to Python, whose compiler raises errors of its own.
        try:
            source = _source(folder, config)
            if source is None:
                return None
            template = environment.from_string(source)
            return cls(template, special_tokens, reads_parts(environment.parse(source)))
        except Exception as error:
            raise CheckpointError(
                f"{folder}: the chat template is not a valid Jinja template ({_brief(error)}); "
                f"correct {TEMPLATE_FILE} or `chat_template` in tokenizer_config.json"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the conversation as text, ending where the assistant's turn begins.

        The content of a message is a string or a list of `{"type": "text", "text": …}`. Raises
        RequestError with the template's own message if it refuses the messages.
        """
        shown = messages if self.reads_parts else list(map(_joined, messages))
        try:
            text = self.template.render(
                messages=shown,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self.special_tokens,
            )
            text.encode()  # raises for half a surrogate pair
        # The template is a program of the model's; it may fail in any way.
        except Exception as error:
            raise RequestError(
                f"the model's chat template refused the messages: {_brief(error)}",
                param="messages",
            ) from error
        return text


def _source(folder: Path, config: Mapping[str, Any]) -> Any:
    """Return the text of the default template, None if there is no such template."""
    named: Any = config.get("chat_template")
    files = {path.name.removesuffix(".jinja"): path for path in _further_files(folder)}
    if (folder / TEMPLATE_FILE).exists():
        files[DEFAULT_NAME] = folder / TEMPLATE_FILE
    if files:
        named = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    elif isinstance(named, list):
        named = {entry["name"]: entry["template"] for entry in named}
    if not isinstance(named, Mapping):
        return named
    if DEFAULT_NAME not in named:
        logger.warning(
            "%s has the chat templates %s, but none named %s: chats are refused; save the one to "
            "use as %s",
            folder,
            ", ".join(sorted(named)),
            DEFAULT_NAME,
            TEMPLATE_FILE,
        )
    return named.get(DEFAULT_NAME)


def _further_files(folder: Path) -> list[Path]:
    return sorted((folder / TEMPLATE_DIR).glob("*.jinja"))


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its text parts joined by newlines, as vLLM joins them."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _brief(error: Exception) -> str:
    """Return what an error says on one line, or its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# Jinja's own filter escapes HTML, which would change the prompt.
def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
