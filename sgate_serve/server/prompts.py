"""What bodies may send as text: a string, token ids, or a list of either."""

from typing import Annotated

from pydantic import Field

from sgate_serve.server.strict_body import TokenIds

MAX_PROMPTS = 1024

Prompts = (
    str
    | TokenIds
    | Annotated[list[str], Field(max_length=MAX_PROMPTS)]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS)]
)
PROMPTS_EXPECTED = (
    f"a string, a list of token ids, or a list of at most {MAX_PROMPTS} strings or lists of token "
    "ids"
)


def as_list(prompts: Prompts) -> list[str | TokenIds]:
    """Return the prompts, always as a list of them."""
    if isinstance(prompts, str):
        return [prompts]
    token_ids = [item for item in prompts if isinstance(item, int)]
    several = [item for item in prompts if not isinstance(item, int)]
    return [token_ids] if token_ids else [*several]
