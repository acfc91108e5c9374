"""Tokens into text, one by one, without ever showing half a character."""

from collections.abc import Callable, Sequence

# How many tokens of the prompt the first new token is decoded behind, so that a decoder which
# strips the first space (Metaspace) does not strip one in the middle. vLLM's number.
NUM_CONTEXT_TOKENS = 5
# A model may emit invalid UTF-8 for ever; past this many held tokens they are shown as U+FFFD.
MAX_HELD_TOKENS = 32
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns tokens into text one by one; a character split over tokens comes out whole.

    The window is the last complete piece of text, as context, and the tokens behind it. What
    `push` and `flush` returned, joined, is the decoding of all tokens pushed.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        context = prompt[-NUM_CONTEXT_TOKENS:]
        self._decode = decode
        self._window = list(context)
        self._num_context = len(context)
        self._num_shown = len(decode(context).rstrip(REPLACEMENT))

    def push(self, token: int) -> str:
        """Return the text that became certain with this token, often one token's, maybe none."""
        self._window.append(token)
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_context
        if text.endswith(REPLACEMENT) and num_held < MAX_HELD_TOKENS:
            return self._show(text.rstrip(REPLACEMENT))
        shown = self._show(text)
        if shown:
            del self._window[: self._num_context]
            self._num_context = len(self._window)
            self._num_shown = len(self._decode(self._window))
        return shown

    def flush(self) -> str:
        """Return what is still held: the replacement of a character that was never completed."""
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        shown = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        return shown
