"""Tokens into text, one by one, without ever showing half a character."""

from collections.abc import Callable, Sequence
from itertools import product

# How many tokens of the prompt the first new token is decoded behind, so that a decoder which
# strips the first space (Metaspace) does not strip one in the middle. vLLM's number.
NUM_CONTEXT_TOKENS = 5
# A model may emit invalid UTF-8 for ever; past this many held tokens they are shown as U+FFFD.
MAX_HELD_TOKENS = 32
# Bytes of a character beside its first: so far a cut may lie from where a character begins.
MAX_CONTINUATION = 3
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns tokens into text one by one; a character split over tokens comes out whole.

    The window is the last complete piece of text, as context, and the tokens behind it. What
    `push` and `flush` returned, joined, is the decoding of all tokens pushed. Only where a run of
    byte tokens (`<0xE7>`) turns invalid does it differ: the decoder of such runs then gives up
    also the characters that were complete, which here were shown long before.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window, self._num_context = _context(decode, prompt)
        self._context_text = decode(self._window[: self._num_context])
        self._num_shown = len(self._context_text)

    def push(self, token: int) -> str:
        """Return the text that became certain with this token, often one token's, maybe none."""
        self._window.append(token)
        text = self._text()
        num_held = len(self._window) - self._num_context
        if text.endswith(REPLACEMENT) and num_held < MAX_HELD_TOKENS:
            return self._show(text.rstrip(REPLACEMENT))
        shown = self._show(text)
        if shown:
            del self._window[: self._num_context]
            self._num_context = len(self._window)
            self._context_text = self._decode(self._window)
            self._num_shown = len(self._context_text)
        elif num_held >= MAX_HELD_TOKENS:
            del self._window[self._num_context]  # a token without text, such as a special one
        return shown

    def flush(self) -> str:
        """Return what is still held: the replacement of a character that was never completed."""
        return self._show(self._text())

    def _text(self) -> str:
        text = self._decode(self._window)
        if text.startswith(self._context_text):
            return text
        return self._context_text + self._decode(self._window[self._num_context :])

    def _show(self, text: str) -> str:
        shown = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        return shown


def _context(
    decode: Callable[[Sequence[int]], str], prompt: Sequence[int]
) -> tuple[list[int], int]:
    """Return the last tokens of a prompt, and how many of them are whole characters.

    One more token may be needed to begin with a whole character, and the prompt may end within
    one: of all cuts the first that leaves none broken. A prompt of broken ones is cut anywhere.
    """
    offsets = range(MAX_CONTINUATION + 1)
    for num_cut, num_more in product(offsets, offsets):
        tokens = list(prompt[-NUM_CONTEXT_TOKENS - num_more :])
        num_context = max(0, len(tokens) - num_cut)
        text = decode(tokens[:num_context])
        if not text.startswith(REPLACEMENT) and not text.endswith(REPLACEMENT):
            return tokens, num_context
    tokens = list(prompt[-NUM_CONTEXT_TOKENS:])
    return tokens, len(tokens)
