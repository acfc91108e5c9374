"""The kinds of work that a model's time goes to, and what a profiler reports of them.

Engines name modules and nodes in their own ways; here a tensor or module name of the checkpoint
becomes a kind and a layer, so that records of all engines have the same words.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sgate_serve.architecture.family import ATTENTION, MLP, MLP_ROLES
from sgate_serve.architecture.recurrent_layers import recurrent_axes
from sgate_serve.architecture.spec import ModelSpec

PROJECTIONS, ATTENDING, UNITS, INDEX, ROUNDING, NORMS, EMBEDDING, HEAD, SAMPLING, OTHER = KINDS = (
    "attention projections",
    "attention",
    "MLP",
    "index work",
    "rounding of activations",
    "norms",
    "embedding",
    "head",
    "sampling",
    "other",
)


class Work(NamedTuple):
    """What a piece of time was spent on; outside the layers `layer` is None."""

    kind: str
    layer: int | None = None


@dataclass(frozen=True)
class Piece:
    """One timed piece of work; its start is on the clock of `time.perf_counter_ns`."""

    work: Work
    start_ns: int
    seconds: float


class Profiler(Protocol):
    """Times the pieces of a loaded model's calls; the model runs a little more slowly."""

    def take(self) -> Sequence[Piece]:
        """Stop, and return the pieces of all calls in the order of their starts."""


# Loads a model by the function given and attaches a profiler to it: (load, spec) → the context.
Profiled = Callable[[Callable[[], Any], ModelSpec], AbstractContextManager[tuple[Any, Profiler]]]


def work_by_module(spec: ModelSpec) -> Mapping[str, Work]:
    """Return the work of each module that has weights, and of each block, by module name.

    What a block does outside of its linears is attention itself, or activations of the MLP.
    """
    family = spec.family
    found = {module_of(name): Work(HEAD) for name in spec.head.tensors}
    found |= {module_of(name): Work(EMBEDDING) for name in spec.outside}
    for name in (family.final_norm, family.embedding_norm):
        if name is not None:
            found[name] = Work(NORMS)
    found[family.head] = Work(HEAD)
    for layer in range(len(spec.layers)):
        name = family.layer_name(layer)
        found[family.block_modules(layer, ATTENTION)[0]] = Work(ATTENDING, layer)
        found[family.block_modules(layer, MLP)[0]] = Work(UNITS, layer)
        if spec.layers[layer].experts:
            # Beside an MLP they are not in its module.
            found[family.experts_name(layer)] = Work(UNITS, layer)
        found |= {norm: Work(NORMS, layer) for norm in spec.norms(layer)}
        found |= {module_of(router): Work(UNITS, layer) for router in spec.router_tensors(layer)}
        found |= {norm: Work(NORMS, layer) for norm in spec.head_norm_sizes(layer)}
        recurrent = recurrent_axes(family, spec.layers[layer], layer)
        found |= {module_of(own): Work(ATTENDING, layer) for own in recurrent}
        for module, roles in spec.modules(layer).items():
            found[module] = Work(kind_of(roles), layer)
    return found


def kind_of(roles: Sequence[str]) -> str:
    """Return the kind of a linear that has these roles."""
    return UNITS if set(roles) <= set(MLP_ROLES) else PROJECTIONS


def module_of(tensor: str) -> str:
    """Return the module of a tensor: the name without `weight`, `bias` or the like."""
    return tensor.rpartition(".")[0]
