"""A model's chat template: Jinja from the model folder, rendered in a process of its own.

Templates get the same environment as in transformers (`template_environment`), the special tokens
as variables, and `tools` and `documents` as none. Whatever a template raises becomes a refused
request, and so does a template that does not end.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.text.template_worker import ChatTemplateError, shared_worker

logger = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
# Further templates by name, which are never the default.
TEMPLATE_DIR = "additional_chat_templates"
DEFAULT_NAME = "default"


@dataclass(frozen=True)
class ChatTemplate:
    """The source of a template and the special tokens it may use.

    With `reads_parts`, it takes a message's content as a list of parts, not as their joined text.
    """

    source: str
    special_tokens: Mapping[str, str]
    reads_parts: bool = False

    @classmethod
    def load(
        cls, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """Read the template of the folder or of its tokenizer config; None if there is neither.

        Raises CheckpointError for an invalid template.
        """
        try:
            source = _source(folder, config)
            if source is None:
                return None
            found = shared_worker().run(source, None)
            return cls(source, special_tokens, found["reads_parts"])
        except (ChatTemplateError, OSError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: the chat template is not a valid Jinja template "
                f"({' '.join(str(error).split())}); correct {TEMPLATE_FILE} or `chat_template` in "
                "tokenizer_config.json"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the conversation as text, ending where the assistant's turn begins.

        The content of a message is a string or a list of `{"type": "text", "text": …}`. Raises
        RequestError with the template's own message if it refuses the messages.
        """
        shown = messages if self.reads_parts else list(map(_joined, messages))
        variables = {
            "messages": shown,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self.special_tokens,
        }
        try:
            text: str = shared_worker().run(self.source, variables)["text"]
        except ChatTemplateError as error:
            raise RequestError(
                f"the model's chat template refused the messages: {error}", param="messages"
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
