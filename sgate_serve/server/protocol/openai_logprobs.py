"""Log-probabilities in both of OpenAI's shapes, with the text, bytes and offset of each token.

Those of prompts are in vLLM's shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgate_serve.engines.contract import TokenLogprobs
from sgate_serve.text.tokenization import TextCodec

Json = dict[str, Any]

# JSON has no minus infinity; this is vLLM's stand-in for it.
LOWEST = -9999.0


@dataclass(frozen=True)
class ShownToken:
    """A token's text, the bytes it stands for, and its log-probability."""

    text: str
    content: bytes
    logprob: float | None


@dataclass(frozen=True)
class Position:
    """A token, the likeliest tokens at its position, and its offset in the text."""

    token: ShownToken
    top: tuple[ShownToken, ...]
    offset: int


def show_position(
    scores: TokenLogprobs, offset: int, codec: TextCodec | None, *, as_ids: bool = False
) -> Position:
    """Return one token's log-probabilities as they are shown: by their ids, or by their texts."""

    def show(token: int, logprob: float | None) -> ShownToken:
        if logprob is not None:
            logprob = max(logprob, LOWEST)
        content = b"" if codec is None else codec.token_bytes(token)
        is_text = codec is not None and not as_ids
        text = _text(content) if is_text else f"token_id:{token}"
        return ShownToken(text, content, logprob)

    top = tuple(show(token, logprob) for token, logprob in scores.top)
    return Position(show(scores.token, scores.logprob), top, offset)


def _text(content: bytes) -> str:
    """Return the bytes of a token as text, in which incomplete characters are escaped.

    Different tokens thereby keep different texts.
    """
    return content.decode("utf-8", "backslashreplace")


def prompt_logprobs(
    prompt: Sequence[TokenLogprobs], num_top: int, codec: TextCodec | None
) -> list[Json | None]:
    """Return vLLM's list: null for the first token, then token id → log-probability, rank and text.

    Each holds the token itself, and after it the `num_top` likeliest.
    """
    return [_prompt_position(scores, num_top, codec) for scores in prompt]


def _prompt_position(scores: TokenLogprobs, num_top: int, codec: TextCodec | None) -> Json | None:
    if scores.logprob is None:
        return None
    found = {scores.token: (scores.logprob, scores.rank)}
    for rank, (token, logprob) in enumerate(scores.top[:num_top], start=1):
        found[token] = (logprob, rank)
    return {
        str(token): {
            "logprob": max(logprob, LOWEST),
            "rank": rank,
            "decoded_token": None if codec is None else _text(codec.token_bytes(token)),
        }
        for token, (logprob, rank) in found.items()
    }


def completion_logprobs(positions: Sequence[Position]) -> Json:
    """Return the parallel lists of a completion; the first token of a prompt has nulls."""
    return {
        "tokens": [position.token.text for position in positions],
        "token_logprobs": [position.token.logprob for position in positions],
        "top_logprobs": [_by_text(position) for position in positions],
        "text_offset": [position.offset for position in positions],
    }


def _by_text(position: Position) -> dict[str, float] | None:
    """Return text → log-probability of the chosen token, which comes first, and the likeliest.

    Of several tokens with the same text, the likeliest is shown.
    """
    if position.token.logprob is None:
        return None
    shown = {position.token.text: position.token.logprob}
    for token in position.top:
        assert token.logprob is not None
        shown[token.text] = max(token.logprob, shown.get(token.text, token.logprob))
    return shown


def chat_logprobs(positions: Sequence[Position]) -> Json:
    """Return the `content` list of a chat choice."""
    content = [
        {**_entry(position.token), "top_logprobs": [_entry(token) for token in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def _entry(token: ShownToken) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.content)}
