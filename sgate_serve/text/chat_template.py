"""A model's chat template: Jinja from the model folder, rendered in a process of its own.

Templates get the same environment as in transformers (`template_environment`), the special tokens
and `tools` as variables, and `documents` as none. Whatever a template raises becomes a refused
request, and so does a template that does not end.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sgate_serve.errors import CheckpointError, RequestError
from sgate_serve.text.template_worker import ChatTemplateError, shared_worker
from sgate_serve.text.tool_formats import ToolFormat, recognised_format

logger = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
# Further templates by name, which are never the default.
TEMPLATE_DIR = "additional_chat_templates"
DEFAULT_NAME = "default"
# The one for conversations with tools, if there is one.
TOOLS_NAME = "tool_use"
# Where a message ends that is to be continued; its space shows whether the template trims messages.
# A template that shows messages twice shows it too, so it is the one of transformers.
MARK = "CONTINUE_FINAL_MESSAGE_TAG "


@dataclass(frozen=True)
class ChatTemplate:
    """The source of a template and the special tokens it may use.

    With `reads_parts`, it takes a message's content as a list of parts, not as their joined text.
    Conversations with tools are rendered by `for_tools`, or else by this template if it
    `reads_tools`.
    """

    source: str
    special_tokens: Mapping[str, str]
    reads_parts: bool = False
    reads_tools: bool = False
    for_tools: "ChatTemplate | None" = None

    @classmethod
    def load(
        cls, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """Read the template of the folder or of its tokenizer config; None if there is neither.

        Raises CheckpointError for an invalid template.
        """
        try:
            sources = _sources(folder, config)
            own = {
                name: cls(sources[name], special_tokens, **shared_worker().run(sources[name], None))
                for name in (DEFAULT_NAME, TOOLS_NAME)
                if name in sources
            }
            if DEFAULT_NAME not in own:
                return None
            return replace(own[DEFAULT_NAME], for_tools=own.get(TOOLS_NAME))
        except (ChatTemplateError, OSError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: the chat template is not a valid Jinja template "
                f"({' '.join(str(error).split())}); correct {TEMPLATE_FILE} or `chat_template` in "
                "tokenizer_config.json"
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: "ChatOptions | None" = None
    ) -> str:
        """Return the conversation as text, ending where the assistant's turn begins or goes on.

        The content of a message is a string or a list of `{"type": "text", "text": …}`. Raises
        RequestError with the template's own message if it refuses the messages, and if it does not
        show a last message that is to be continued.
        """
        options = options or ChatOptions()
        if options.tools is not None and self.for_tools is not None:
            return self.for_tools.render(messages, options)
        shown = list(messages if self.reads_parts else map(_joined, messages))
        last = shown[-1] if shown else {}
        if options.continue_final_message:
            shown[-1] = _marked(last)
        variables = {
            "tools": options.tools,
            "documents": None,
            **self.special_tokens,
            **options.chat_template_kwargs,
            "messages": shown,
            "add_generation_prompt": options.add_generation_prompt,
        }
        try:
            text: str = shared_worker().run(self.source, variables)["text"]
        except ChatTemplateError as error:
            raise RequestError(
                f"the model's chat template refused the messages: {error}", param="messages"
            ) from error
        return _cut_at_mark(text, last) if options.continue_final_message else text

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes calls of tools, if its template shows that."""
        return recognised_format(self._of_tools.source) if self.shows_tools else None

    @property
    def shows_tools(self) -> bool:
        """Whether the model sees the tools of a conversation."""
        return self._of_tools.reads_tools

    @property
    def _of_tools(self) -> "ChatTemplate":
        return self.for_tools or self


@dataclass(frozen=True)
class ChatOptions:
    """How a conversation is rendered, by the names of transformers' `apply_chat_template`.

    `continue_final_message` ends the text inside the last message instead of after it;
    `tools` are in OpenAI's shape, and `chat_template_kwargs` further variables of the template.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None


def _marked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose text ends in the mark."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + MARK}
    if not content:
        raise _not_continued()
    *others, last = content
    return {**message, "content": [*others, {**last, "text": last["text"] + MARK}]}


def _cut_at_mark(text: str, message: Mapping[str, Any]) -> str:
    """Return the text before the mark; a template that trims messages has trimmed this one too."""
    place = text.rfind(MARK.strip())
    if place < 0 or _last_text(message).strip() not in text:
        raise _not_continued()
    is_trimmed = not text.startswith(MARK, place)
    return text[:place].rstrip() if is_trimmed else text[:place]


def _not_continued() -> RequestError:
    return RequestError(
        "the model's chat template does not show the last message as it is, or it has no text, so "
        "it cannot be continued; leave out `continue_final_message`",
        param="continue_final_message",
    )


def _last_text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    text: str = content if isinstance(content, str) else content[-1]["text"]
    return text


def _sources(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the texts of all templates by name."""
    named: Any = config.get("chat_template")
    files = {path.name.removesuffix(".jinja"): path for path in _further_files(folder)}
    if (folder / TEMPLATE_FILE).exists():
        files[DEFAULT_NAME] = folder / TEMPLATE_FILE
    if files:
        named = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    elif isinstance(named, list):
        named = {entry["name"]: entry["template"] for entry in named}
    if not isinstance(named, Mapping):
        return {} if named is None else {DEFAULT_NAME: named}
    if DEFAULT_NAME not in named:
        logger.warning(
            "%s has the chat templates %s, but none named %s: chats are refused; save the one to "
            "use as %s",
            folder,
            ", ".join(sorted(named)),
            DEFAULT_NAME,
            TEMPLATE_FILE,
        )
    return named


def _further_files(folder: Path) -> list[Path]:
    return sorted((folder / TEMPLATE_DIR).glob("*.jinja"))


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its text parts joined by newlines, as vLLM joins them."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}
