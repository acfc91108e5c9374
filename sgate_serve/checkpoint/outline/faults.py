"""A fault of a checkpoint, and how the same fault of many layers is said once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

# Of numbers that are missing, or too many.
MOST_RUNS = 8


class Fault(NamedTuple):
    """Where a checkpoint contradicts itself, and how; layers with the same fault agree in `how`."""

    where: str
    how: str


def grouped(faults: Iterable[Fault]) -> Iterator[str]:
    """Yield a line for each kind of fault, with the first place that has it."""
    places: dict[str, list[str]] = defaultdict(list)
    for fault in faults:
        places[fault.how].append(fault.where)
    for how, where in places.items():
        others = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        yield f"{where[0]}{others}: {how}"


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers with their runs cut short: 1, 3 to 5."""
    known = set(numbers)
    starts = sorted(number for number in known if number - 1 not in known)
    ends = sorted(number for number in known if number + 1 not in known)
    return _written([*zip(starts, ends, strict=True)])


def gaps(numbers: Iterable[int], end: int) -> str:
    """Write the numbers from 0 to `end` - 1 that are missing in `numbers`, in the same way."""
    known = sorted({number for number in numbers if number < end})
    around = pairwise([-1, *known, end])
    return _written([(low + 1, high - 1) for low, high in around if high - low > 1])


def _written(runs: Sequence[tuple[int, int]]) -> str:
    texts = [str(low) if low == high else f"{low} to {high}" for low, high in runs[:MOST_RUNS]]
    return ", ".join([*texts, "others"] if len(runs) > MOST_RUNS else texts)
