"""Runs a model under masks: forward hooks multiply its linears' inputs and outputs by gates.

Closed experts are out of their router's choice. The weights do not change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sgate_serve.gates.keys import GateSite
from sgate_serve.models.routers import chosen_among, is_router
from sgate_serve.plan import Masks

Source = Callable[[], Tensor]


@dataclass(frozen=True)
class GateSources:
    """Functions that read out one linear's gates at each forward pass; None for an ungated side."""

    rows: Source | None = None
    columns: Source | None = None


def sources_of_sites(pairs: Iterable[tuple[GateSite, Source]]) -> dict[str, GateSources]:
    """Group the sources of gate sites by module name; each side of a module has one at most."""
    sources: dict[str, GateSources] = {}
    for site, source in pairs:
        known = sources.get(site.module, GateSources())
        sources[site.module] = replace(known, **{site.side: source})
    return sources


def constant_sources(masks: Masks, device: torch.device) -> dict[str, GateSources]:
    """Return constant sources with the values of `masks`."""
    sources = {}
    for name, gate in masks.items():
        sides = {side: value for side, value in vars(gate).items() if value is not None}
        constants = {side: torch.tensor(value, device=device) for side, value in sides.items()}
        sources[name] = GateSources(**{s: partial(_identity, c) for s, c in constants.items()})
    return sources


@contextmanager
def masked_linears(model: nn.Module, sources: Mapping[str, GateSources]) -> Iterator[None]:
    """Within the context, a gated linear computes ((x ∘ columns) Wᵀ + b) ∘ rows.

    Each forward pass reads out the gates of a side once.
    """
    handles = []
    for name, gate in sources.items():
        module = model.get_submodule(name)
        if gate.columns is not None:
            handles.append(module.register_forward_pre_hook(_input_multiplier(gate.columns)))
        if gate.rows is not None:
            handles.append(module.register_forward_hook(_output_multiplier(gate.rows)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def masked_by(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Within the context, `model` runs under constant masks.

    Routers never choose the experts whose rows are closed.
    """
    routers = {name for name in masks if is_router(model, name)}
    linears = {name: gate for name, gate in masks.items() if name not in routers}
    device = next(model.parameters()).device
    with ExitStack() as stack:
        for name in routers:
            rows = masks[name].rows
            assert rows is not None, "gates of experts are rows of their router"
            is_open = torch.from_numpy(rows > 0)
            stack.enter_context(chosen_among(model.get_submodule(name), is_open))
        stack.enter_context(masked_linears(model, constant_sources(linears, device)))
        yield


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _input_multiplier(source: Source) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        (hidden,) = inputs
        return (hidden * source().to(hidden.dtype),)

    return multiply


def _output_multiplier(source: Source) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def multiply(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return output * source().to(output.dtype)

    return multiply
