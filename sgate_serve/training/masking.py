"""Multiply the inputs of a model's linears by gates while it runs, without touching its weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sgate_serve.plan import Masks

Columns = Mapping[str, Callable[[], Tensor]]


@contextmanager
def masked_inputs(model: nn.Module, columns: Columns) -> Iterator[None]:
    """Within the context, linear `name` reads x ∘ columns[name](), evaluated at each forward."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_multiplier(source))
        for name, source in columns.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def column_tensors(masks: Masks, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Turn the column gates of `masks` into constant sources for `masked_inputs`."""
    sources: dict[str, Callable[[], Tensor]] = {}
    for name, gate in masks.items():
        assert gate.rows is None, f"{name}: coupled gates fold into columns only"
        constant = torch.tensor(gate.columns, device=device)
        sources[name] = partial(_identity, constant)
    return sources


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _multiplier(source: Callable[[], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        (hidden,) = inputs
        return (hidden * source().to(hidden.dtype),)

    return multiply
