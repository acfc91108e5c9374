"""Tables for a terminal."""

from collections.abc import Iterator, Sequence


def table_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows of cells as aligned lines, the first column to the left; rows may end early."""
    width = max(map(len, rows))
    padded = [[*row, *[""] * (width - len(row))] for row in rows]
    sizes = [max(map(len, column)) for column in zip(*padded, strict=True)]
    for name, *values in padded:
        aligned = (f"{value:>{size}}" for value, size in zip(values, sizes[1:], strict=True))
        yield "   ".join([f"{name:<{sizes[0]}}", *aligned]).rstrip()
