"""Incremental detokenization: tokens to text, one by one, and only whole characters."""

import codecs
from collections.abc import Callable, Sequence

# Tokens of the prompt that are decoded before the first new token, so that a decoder which strips
# the first space of a text (Metaspace) does not strip one in the middle. The number is vLLM's.
NUM_CONTEXT_TOKENS = 5
# A model may emit invalid UTF-8 forever; after this many held tokens they are shown as U+FFFD.
MAX_HELD_TOKENS = 32
# Bytes of a UTF-8 character after its first: the most by which a cut may miss a character's start.
MAX_CONTINUATION = 3
REPLACEMENT = "\ufffd"

TokenBytes = Callable[[int], bytes]


class Detokenizer:
    """Turns tokens into text one by one, holding back incomplete characters.

    The window is the last complete piece of text, as context, and the tokens after it. The results
    of `push` and `flush` concatenate to the decoding of all tokens, with one exception: when a run
    of byte tokens (`<0xE7>`) becomes invalid, the decoder replaces even its complete characters,
    which were already shown here.

    `token_bytes` returns the bytes that a token adds to a decoded text.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        token_bytes: TokenBytes,
        prompt: Sequence[int],
    ) -> None:
        self._decode = decode
        self._window = _tail(token_bytes, prompt)
        self._num_context, complete = _whole(token_bytes, self._window)
        self._context_text = decode(self._window[: self._num_context]) + complete
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


def _tail(token_bytes: TokenBytes, prompt: Sequence[int]) -> list[int]:
    """Return the last tokens of a prompt, more of them if the first would begin in a character."""
    for num_more in range(MAX_CONTINUATION + 1):
        tokens = list(prompt[-NUM_CONTEXT_TOKENS - num_more :])
        text = b"".join(map(token_bytes, tokens))
        if not text or text[0] & 0xC0 != 0x80:
            return tokens
    return list(prompt[-NUM_CONTEXT_TOKENS:])


def _whole(token_bytes: TokenBytes, tokens: Sequence[int]) -> tuple[int, str]:
    """Return how many tokens end before an incomplete last character, and the text after them.

    That text is what the next token has in front of the incomplete character. A U+FFFD that is in
    the text itself is a character like any other, so bytes decide, not the decoded text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(map(token_bytes, tokens)))
    num_pending = len(decoder.getstate()[0])
    num_whole, last = len(tokens), b""
    while len(last) < num_pending:
        num_whole -= 1
        last = token_bytes(tokens[num_whole]) + last
    return num_whole, last[: len(last) - num_pending].decode("utf-8", "replace")
