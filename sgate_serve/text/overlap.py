"""How much of a marker a text that goes on may already hold."""


def overlap(text: str, marker: str) -> int:
    """Return the length of the longest end of a text that is a beginning of the marker, not all."""
    lengths = range(min(len(text), len(marker) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)
