"""The modules that hold the roles of a layer, and the rows that each role has in them.

Mostly that is one linear for each role. Some families fuse roles in one, and in a mixture there is
one for each expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.family import DOWN, EXPERTS, HIDDEN, ONE, Axes, Family
from sgate_serve.architecture.shapes import LayerShape

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A module of a layer that holds a role, or those of its units that one expert has.

    The shared expert has the number after the others'.
    """

    module: str
    numbered: Callable[[], Rows]
    units: slice
    layer: int
    expert: int | None = None

    @cached_property
    def rows(self) -> Rows:
        """The role's rows in the module, numbered only now: a config may claim any number."""
        return self.numbered()


def role_rows(family: Family, layer: LayerShape, hidden_size: int, index: int, role: str) -> Rows:
    """Return which rows of its module a role of a layer has, in the order of its dimensions."""
    shapes, roles = layer.linear_shapes(hidden_size), family.fused_roles(index, role)
    sizes, place = [shapes[other][0] for other in roles], roles.index(role)
    rounds = 1
    if family.alternates(index) and len(roles) > 1:
        rounds = layer.num_kv_heads if layer.is_recurrent else layer.num_heads
    start, size = sum(sizes[:place]) // rounds, sizes[place] // rounds
    return np.arange(sum(sizes)).reshape(rounds, -1)[:, start : start + size].reshape(-1)


def expert_parts(
    family: Family, layer: LayerShape, hidden_size: int, index: int, role: str
) -> list[Part]:
    """Return the linears of a mixture that hold an MLP role, in the order of its units.

    An expert without units has none.
    """
    found = []
    for expert, units in enumerate(layer.expert_spans):
        number = expert if expert < len(layer.experts) else None
        if units.stop > units.start:
            rows = hidden_size if role == DOWN else units.stop - units.start
            module = family.expert_linear(index, number, role)
            found.append(Part(module, partial(np.arange, rows), units, index, expert))
    return found


def router_axes(family: Family, layer: LayerShape, index: int) -> dict[str, Axes]:
    """Return the tensors that choose and weigh the experts of a layer, with their axes."""
    mixture, name = family.mixture, family.layer_name(index)
    if mixture is None or not layer.experts:
        return {}
    found: dict[str, Axes] = {f"{family.router_name(index)}.weight": (EXPERTS, HIDDEN)}
    if mixture.has_biased_router:
        found[f"{family.router_name(index)}.bias"] = (EXPERTS,)
    if correction := correction_name(family, layer, index):
        found[correction] = (EXPERTS,)
    if (branch := family.branch(index)) is not None:
        found |= {branch.router_scale: (HIDDEN,), branch.share_scale: (EXPERTS,)}
    if mixture.shared_gate is not None and layer.shared_units:
        found[f"{name}.{mixture.shared_gate}.weight"] = (ONE, HIDDEN)
    return found


def correction_name(family: Family, layer: LayerShape, index: int) -> str | None:
    """Return the tensor that a layer's router adds to its scores for the choice, if any."""
    if family.mixture is None or family.mixture.correction is None or not layer.experts:
        return None
    return f"{family.layer_name(index)}.{family.mixture.correction}"
