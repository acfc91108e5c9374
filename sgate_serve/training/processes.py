"""The processes of one run, as `torchrun` or `accelerate launch` start them: mostly one.

Each trains on its own batches, and all come to the same weights; the main one writes.
"""

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")


def processes() -> PartialState:
    """Return the state that all processes share, joined at the first call."""
    return PartialState(cpu=not torch.cuda.is_available())


def agreed(value: Value) -> Value:
    """Return the main process's value, to all: what kernels round differently may differ."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
