"""The processes of a distributed run, as `torchrun` or `accelerate launch` start them.

Each trains on batches of its own, all end with the same weights, and the main process writes.
"""

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")


def processes() -> PartialState:
    """Return the state of this process among all; the first call joins the group."""
    return PartialState(cpu=not torch.cuda.is_available())


def agreed(value: Value) -> Value:
    """Return the main process's value in every process, whose kernels may round differently."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
