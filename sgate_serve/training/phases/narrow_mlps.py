"""Trains MLPs at the width that a mask leaves them, so that closed units cost no products.

A closed unit gets no gradient: steps compute what they would under the mask.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sgate_serve.architecture.family import DOWN, MLP, READERS
from sgate_serve.architecture.parts import Part
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates.keys import COLUMNS, ROWS
from sgate_serve.plan import Masks

# The dimension of each side in a weight [out, in], and the attributes that hold its size.
DIMENSIONS: Mapping[str, int] = {ROWS: 0, COLUMNS: 1}
SIZES: Mapping[str, tuple[str, str]] = {
    ROWS: ("out_features", "nf"),
    COLUMNS: ("in_features", "nx"),
}


@contextmanager
def narrow_mlps(model: nn.Module, spec: ModelSpec, masks: Masks) -> Iterator[Masks]:
    """Within the context, MLPs lack the units whose output `masks` close; yields masks to match.

    A layer, and each expert of a mixture, keeps at least one unit. Afterwards the weights of closed
    units are as they were, and those of the others as they became.
    """
    narrow = dict(masks)
    with ExitStack() as stack:
        for name, (side, kept) in _narrower(spec, masks):
            stack.enter_context(_narrowed(model.get_submodule(name), side, kept))
            gate = masks.get(name)
            values = None if gate is None else getattr(gate, side)
            if gate is not None and values is not None:
                narrow[name] = replace(gate, **{side: values[kept.numpy()]})
        yield narrow


def _narrower(spec: ModelSpec, masks: Masks) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Yield the linears that lack units, the side where they do, and the places that stay."""
    for index in range(len(spec.layers)):
        readers = _readers(spec, index)
        for down in spec.parts(index, DOWN) if readers else ():
            units = _open_units(masks, down.module)
            if units is not None:
                yield from _rows_of(readers[down.expert], units)
                yield down.module, (COLUMNS, units)


def _rows_of(parts: Sequence[Part], units: Tensor) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Yield the linears of these parts, and the rows that `units` have there."""
    rows: dict[str, list[Tensor]] = {}
    for part in parts:
        rows.setdefault(part.module, []).append(torch.from_numpy(part.rows)[units])
    yield from ((name, (ROWS, torch.cat(found))) for name, found in rows.items())


def _readers(spec: ModelSpec, index: int) -> dict[int | None, list[Part]]:
    """Return the parts that hold the units of a layer's MLP as rows, by expert."""
    readers: dict[int | None, list[Part]] = {}
    for role in READERS[MLP]:
        for part in spec.parts(index, role) if role in spec.linear_shapes(index) else ():
            readers.setdefault(part.expert, []).append(part)
    return readers


def _open_units(masks: Masks, down: str) -> Tensor | None:
    """Return the units whose columns of the linear `down` are open, or None for all."""
    gate = masks.get(down)
    if gate is None or gate.columns is None or gate.columns.all():
        return None
    units = torch.from_numpy(gate.columns).nonzero().flatten()
    return units if len(units) else torch.tensor([0])


@contextmanager
def _narrowed(linear: nn.Module, side: str, kept: Tensor) -> Iterator[None]:
    """Within the context, a linear has only the `kept` rows or columns."""
    is_transposed = isinstance(linear, Conv1D)
    dimensions = {"weight": DIMENSIONS[side] ^ is_transposed}
    if side == ROWS and linear.bias is not None:
        dimensions["bias"] = 0
    size_name = SIZES[side][is_transposed]
    size = getattr(linear, size_name)
    is_kept = torch.zeros(size, dtype=torch.bool).index_fill(0, kept, value=True)
    closed = (~is_kept).nonzero().flatten()
    aside = {}
    for name, dimension in dimensions.items():
        whole = linear.get_parameter(name).detach()
        aside[name] = whole.index_select(dimension, closed.to(whole.device))
        _replace(linear, name, whole.index_select(dimension, kept.to(whole.device)))
    setattr(linear, size_name, len(kept))
    try:
        yield
    finally:
        setattr(linear, size_name, size)
        places = torch.cat([kept, closed]).argsort()
        for name, dimension in dimensions.items():
            parts = torch.cat([linear.get_parameter(name).detach(), aside[name]], dimension)
            _replace(linear, name, parts.index_select(dimension, places.to(parts.device)))


def _replace(linear: nn.Module, name: str, values: Tensor) -> None:
    trains = linear.get_parameter(name).requires_grad
    setattr(linear, name, nn.Parameter(values, requires_grad=trains))
