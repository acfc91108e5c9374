"""How models write tool calls: one format for each family of chat templates.

The template teaches the model its format, so the format is recognised in the template's text. The
names are those of vLLM's `--tool-call-parser`.
"""

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace

LETTERS = string.ascii_letters + string.digits
# Mistral's templates refuse ids of any other length.
MISTRAL_ID_LENGTH = 9


@dataclass(frozen=True)
class ToolFormat:
    """Calls as a model writes them: blocks of `begin`, `opens`, calls, `closes` and `end`.

    A call is `before`, the name, `after`, the arguments as JSON and `tail`. A block has one call,
    or several if there is a `separator`; blocks are joined by `between`. `opens` is in Lark, as it
    may be optional. With `is_bare`, an answer may begin with a call, without `begin`.
    """

    name: str
    begin: str
    before: str = '{"name": "'
    after: str = '", "arguments": '
    tail: str = "}"
    opens: str = ""
    separator: str | None = None
    closes: str = ""
    end: str = ""
    between: str = ""
    is_bare: bool = False

    @property
    def is_array(self) -> bool:
        """Whether a block is a JSON list of calls."""
        return self.closes == "]"

    @property
    def may_begin_with_name(self) -> bool:
        """Whether the name of a call may stand before its object, as models of Mistral do both."""
        return self.begin == MISTRAL.begin

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that may be special tokens of the tokenizer."""
        return tuple(text for text in (self.begin, self.end, self.after) if text)

    def head(self, name: str) -> str:
        """Return what is written before the arguments of a call."""
        return f"{self.before}{name}{self.after}"

    def new_id(self) -> str:
        """Return the id of a new call."""
        if self.may_begin_with_name:
            return "".join(secrets.choice(LETTERS) for _ in range(MISTRAL_ID_LENGTH))
        return f"call_{secrets.token_hex(12)}"


HERMES = ToolFormat(
    "hermes", "<tool_call>", opens='"\\n"', closes="\n", end="</tool_call>", between="\n"
)
SMOLLM2 = ToolFormat(
    "smollm2", "<tool_call>", opens='"["', separator=", ", closes="]", end="</tool_call>"
)
LLAMA3 = ToolFormat(
    "llama3_json", "<|python_tag|>", after='", "parameters": ', separator="; ", is_bare=True
)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", opens='" "? "["', separator=", ", closes="]")
MISTRAL_ARGS = replace(
    MISTRAL,
    name="mistral_args",
    before="",
    after="[ARGS]",
    tail="",
    opens="",
    separator=None,
    closes="",
)
FORMATS: Mapping[str, ToolFormat] = {
    own.name: own for own in (HERMES, SMOLLM2, LLAMA3, MISTRAL, MISTRAL_ARGS)
}
# Calls in tags of XML, which look like those of Hermes at first.
XML_CALLS = ("<function=", "<arg_key>")
# Cohere's calls also have parameters, but another key for the name.
LLAMA_TEXTS, COHERE_TEXT = ('{"name": ', '"parameters": '), '"tool_name"'


def recognised_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template shows to its model; None if it is none of ours."""
    if MISTRAL.begin in template:
        return MISTRAL_ARGS if MISTRAL_ARGS.after in template else MISTRAL
    if HERMES.begin in template:
        if any(tag in template for tag in XML_CALLS):
            return None
        return SMOLLM2 if f"{SMOLLM2.begin}[" in template else HERMES
    is_llamas = all(text in template for text in LLAMA_TEXTS) and COHERE_TEXT not in template
    return LLAMA3 if is_llamas else None
