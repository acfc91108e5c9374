"""Cuts a stream of text before the first stop string, without ever showing part of one.

Which string counts does not depend on how the text was cut into pieces: it is the one that is
complete first, and of two complete at the same character the longer one.
"""

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one choice. After `found` nothing more may be pushed."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Return the text that can be shown now; sets `found` when a stop string is complete."""
        text = self._held + text
        matches = [
            (start + len(string), start)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if matches:
            self.found, self._held = True, ""
            return text[: min(matches)[1]]
        num_held = max((_overlap(text, string) for string in self._strings), default=0)
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """Return what was held back, now that no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that begins `string` without completing it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if string.startswith(text[-length:]):
            return length
    return 0
