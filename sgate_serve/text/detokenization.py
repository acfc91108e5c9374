"""Incremental detokenization: tokens to text, one by one, and only whole characters."""

from collections.abc import Callable, Sequence
from itertools import product

# Tokens of the prompt that are decoded before the first new token, so that a decoder which strips
# the first space of a text (Metaspace) does not strip one in the middle. The number is vLLM's.
NUM_CONTEXT_TOKENS = 5
# A model may emit invalid UTF-8 forever; after this many held tokens they are shown as U+FFFD.
MAX_HELD_TOKENS = 32
# Bytes of a UTF-8 character after its first: the most by which a cut may miss a character's start.
MAX_CONTINUATION = 3
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns tokens into text one by one, holding back incomplete characters.

    The window is the last complete piece of text, as context, and the tokens after it. The results
    of `push` and `flush` concatenate to the decoding of all tokens, with one exception: when a run
    of byte tokens (`<0xE7>`) becomes invalid, the decoder replaces even its complete characters,
    which were already shown here.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window, self._num_context = _context(decode, prompt)
        self._context_text = decode(self._window[: self._num_context])
        self._num_shown = len(self._context_text)

    def push(self, token: int) -> str:
        """Return the text that is complete with this token, which may be empty."""
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
            del self._window[self._num_context]  # a token without text, such as a special token
        return shown

    def flush(self) -> str:
        """Return the text still held: the replacement of a character that was never completed."""
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
    """Return the last tokens of a prompt, and the number of them that are whole characters.

    More tokens may be needed to start with a whole character, and the prompt may end within one. Of
    all such cuts, the first without broken characters is taken, if there is any.
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
