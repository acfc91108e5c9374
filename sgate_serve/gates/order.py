"""The closing order of a gates folder, `order.safetensors`: which gates close for smaller sizes.

Training ranks all gates and closes the first of them. The order numbers the steps that would come
next: a gate of step k is closed at every size from step k on, so masks of smaller sizes are nested.
0 is closed already, -1 stays open at every size. Older releases ignore the file.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint.tensor_files import read_header
from sgate_serve.checkpoint.writer import FolderWriter, TensorHeader, write_tensors
from sgate_serve.errors import CheckpointError, GatesError

ORDER_FILE = "order.safetensors"
STAYS = -1

Steps = NDArray[np.int32]
Order = Mapping[str, Steps]
Values = NDArray[np.float32]


def read_order(folder: Path, values: Mapping[str, Values]) -> Order:
    """Read the order of the gates in `folder`; empty without a file.

    Raises GatesError for an order that is malformed or not of these `values`.
    """
    file = folder / ORDER_FILE
    if not file.exists():
        return {}
    try:
        order = {key: info.read() for key, info in read_header(file).items()}
    except CheckpointError as error:
        raise GatesError(str(error)) from error
    _check(order, values, str(file))
    return order


def write_order(writer: FolderWriter, order: Order) -> None:
    headers = [TensorHeader(key, "I32", steps.shape) for key, steps in order.items()]
    write_tensors(writer.path(ORDER_FILE), headers, order.values(), {"format": "pt"})


def num_steps(order: Order) -> int:
    """Return the number of steps after which no further gate may close."""
    return max((int(steps.max(initial=0)) for steps in order.values()), default=0)


def closed_to(values: Mapping[str, Values], order: Order, step: int) -> dict[str, Values]:
    """Return the read-outs with the gates of all steps up to `step` closed as well."""
    return {
        key: np.where((order[key] > 0) & (order[key] <= step), np.float32(0), open_values)
        for key, open_values in values.items()
    }


def _check(order: Order, values: Mapping[str, Values], source: str) -> None:
    remedy = "train again, or remove the file, without which there are no smaller sizes"
    if strays := sorted(order.keys() ^ values.keys()):
        raise GatesError(f"{source}: {strays[0]} is a key of the gates or of the order; {remedy}")
    for key, steps in order.items():
        if steps.dtype != np.int32 or steps.shape != values[key].shape:
            raise GatesError(
                f"{source}: {key} is {steps.dtype} of shape {list(steps.shape)}, and the gates are "
                f"of shape {list(values[key].shape)}; {remedy}"
            )
        if (steps < STAYS).any() or not np.array_equal(steps == 0, values[key] == 0):
            raise GatesError(
                f"{source}: {key} must be 0 where a gate is closed, and elsewhere a step from 1 or "
                f"{STAYS}; {remedy}"
            )
