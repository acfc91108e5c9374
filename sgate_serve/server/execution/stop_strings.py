"""Cuts a stream of text at the first stop string, without ever showing a part of one.

The first string is the one that is complete first and, of two that end at the same character, the
longer one. It does not depend on how the text is split into pieces.
"""

from collections.abc import Sequence

from sgate_serve.text.overlap import overlap


class StopStrings:
    """Watches the text of one choice; after `found`, no more text may be pushed.

    With `is_shown`, the text ends after the string instead of before it.
    """

    def __init__(self, strings: Sequence[str], *, is_shown: bool = False) -> None:
        self._strings = tuple(strings)
        self._is_shown = is_shown
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Return the text that can be shown now; set `found` to a stop string that is complete."""
        text = self._held + text
        matches = [
            (start + len(string), start, string)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if matches:
            end, start, self.found = min(matches)
            self._held = ""
            return text[: end if self._is_shown else start]
        num_held = max((overlap(text, string) for string in self._strings), default=0)
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """Return the text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held
