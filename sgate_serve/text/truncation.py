"""Truncation of a text or of a pair, by the rules of transformers and of vLLM."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from tokenizers import Encoding

from sgate_serve.errors import RequestError

Side = Literal["left", "right"]
Ids = TypeVar("Ids", list[int], tuple[int, ...])


@dataclass(frozen=True)
class Truncation:
    """At most `max_tokens`, including special ones, which stay while the text between them is cut.

    `side` is where text is cut, by default where the tokenizer's files say. With `cuts_special`,
    all tokens are alike and the first or last of them stay, as with vLLM's `truncation_side`.
    """

    max_tokens: int
    side: Side | None = None
    cuts_special: bool = False

    def slice(self, items: Ids) -> Ids:
        """Return what stays of the tokens, or of numbers that belong to each, if all are alike."""
        return items[-self.max_tokens :] if self.side == "left" else items[: self.max_tokens]

    def room(self, num_special: int) -> int:
        """Return how many tokens of text stay; raise RequestError if there is no room for any."""
        if self.max_tokens <= num_special:
            raise RequestError(
                f"{self.max_tokens} tokens leave no room for text in addition to {num_special} "
                "special tokens; allow more",
                param="truncate_prompt_tokens",
            )
        return self.max_tokens - num_special


def truncate(first: Encoding, second: Encoding | None, room: int, side: str) -> None:
    """Truncate to `room` tokens in all, as transformers' `longest_first` does."""
    if second is None:
        cut(first, room, side)
        return
    shorter, longer = (second, first) if len(first) > len(second) else (first, second)
    # The longer one gets what the shorter one leaves, but at least half.
    cut(longer, max(room - len(shorter), (room + 1) // 2), side)
    cut(shorter, room - len(longer), side)


def cut(encoding: Encoding, most: int, side: str = "right") -> None:
    """Cut an encoding down to `most` tokens, by halves, as long as it has many more.

    The library keeps what it cuts off in pieces of what stays, each of which takes a kilobyte.
    """
    while len(encoding) > 2 * max(most, 1):
        encoding.truncate(len(encoding) // 2, direction=side)
    encoding.truncate(most, direction=side)
