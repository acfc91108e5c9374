"""A fault of a checkpoint, and how the same fault of many layers is said once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple


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
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
