"""Stack the experts of stock folders whose class keeps all of a layer in one tensor.

A stack is written once its last expert has come. Peak memory is the stacks of one layer that are
begun and not complete: those of gate and up, or of down.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sgate_serve.architecture.family import Family
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import is_stock_shape
from sgate_serve.checkpoint.stacks import slot_of, stack_shape
from sgate_serve.checkpoint.tensor_files import DTYPES, Array
from sgate_serve.checkpoint.writer import TensorHeader


def is_stacked(spec: ModelSpec) -> bool:
    """Say whether the folder of a result has stacks: a stock one of a family whose files do."""
    mixture = spec.family.mixture
    return mixture is not None and mixture.is_stacked and is_stock_shape(spec)


def file_name(name: str, spec: ModelSpec) -> str:
    """Return the name of the tensor that holds one of the model's in the folder of a result."""
    slot = slot_of(name, spec.family) if is_stacked(spec) else None
    return name if slot is None else slot.stack


def stacked_headers(headers: Sequence[TensorHeader], family: Family) -> list[TensorHeader]:
    """Return the headers of a stock folder: each stack at the place of its last part.

    Parts that are stored in different types give a stack of the widest.
    """
    found, parts = dict[str, TensorHeader](), dict[str, list[TensorHeader]]()
    for header in headers:
        slot = slot_of(header.name, family)
        if slot is None:
            found[header.name] = header
            continue
        held = parts.setdefault(slot.stack, [])
        held.append(header)
        found.pop(slot.stack, None)
        dtype = max((part.dtype for part in held), key=lambda name: DTYPES[name].itemsize)
        shape = stack_shape(slot, header.shape, slot.expert + 1)
        found[slot.stack] = replace(header, name=slot.stack, dtype=dtype, shape=shape)
    return list(found.values())


def stacked_arrays(
    headers: Sequence[TensorHeader], arrays: Iterable[Array], family: Family
) -> Iterator[Array]:
    """Yield the arrays that `stacked_headers` announces, from those of `headers`."""
    wanted = {header.name: header for header in stacked_headers(headers, family)}
    slots = [slot_of(header.name, family) for header in headers]
    missing = Counter(slot.stack for slot in slots if slot is not None)
    begun = dict[str, Array]()
    for slot, array in zip(slots, arrays, strict=True):
        if slot is None:
            yield array
            continue
        header = wanted[slot.stack]
        if slot.stack not in begun:
            begun[slot.stack] = np.empty(header.shape, DTYPES[header.dtype])
        slot.of(begun[slot.stack])[...] = array
        missing[slot.stack] -= 1
        if not missing[slot.stack]:
            yield begun.pop(slot.stack)
