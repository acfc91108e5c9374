"""The selection of gates that close, so that the Plan removes the target; the others stay open.

Holds the parts common to the granularities: the ranking, the result, the search, and the order in
which further gates would close. Pure.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.gates import Gates
from sgate_serve.gates.order import STAYS
from sgate_serve.training.masks.prunable_sites import GateValues


@dataclass(frozen=True)
class Ranking:
    """The input of a selection: gates close in ascending order of `scores`.

    Open gates keep their `read_outs`, or 1 if there are none. MLP units close `gate_block` at a
    time. `num_groups` attention groups close; by default, the target's share of them. `method` says
    where the scores come from. `is_joint` says that scores compare across layers of experts, and
    across kinds of block.
    """

    scores: GateValues
    read_outs: GateValues | None = None
    gate_block: int = 1
    method: str = ""
    num_groups: int | None = None
    is_joint: bool = False


@dataclass(frozen=True)
class Selection:
    """Gates that are exactly 0 or open, and the fraction of the target's whole they remove."""

    gates: Gates
    removed: float

    def miss(self, target: float) -> float:
        return abs(self.removed - target)


def first_reaching(close: Callable[[int], Selection], low: int, high: int, target: float) -> int:
    """Return the smallest count in [low, high] whose selection removes `target`, or `high`."""
    while low < high:
        middle = (low + high) // 2
        if close(middle).removed < target:
            low = middle + 1
        else:
            high = middle
    return low


def with_order(selection: Selection, steps: Iterable[tuple[str, NDArray[Any]]]) -> Selection:
    """Record in the gates which close next: those of each step, its key and gates, in turn."""
    values = selection.gates.values
    order = {key: np.where(open_, STAYS, 0).astype(np.int32) for key, open_ in values.items()}
    for number, (key, gates) in enumerate(steps, 1):
        order[key][gates] = number
    return replace(selection, gates=replace(selection.gates, order=order))
