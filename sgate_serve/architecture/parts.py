"""The modules that hold the roles of a layer: one linear each, in a mixture one for each expert."""

from dataclasses import dataclass

from sgate_serve.architecture.family import EXPERTS, HIDDEN, ONE, Axes, Family
from sgate_serve.architecture.shapes import LayerShape

# Routers of sigmoid scores add it to the sum that they divide by.
LEAST_SUM = 1e-20


@dataclass(frozen=True)
class Part:
    """A module of a layer that holds a role, or those of its units that one expert has.

    `rows` are the role's rows in the module. The shared expert has the number after the others'.
    """

    module: str
    rows: slice
    units: slice
    layer: int
    expert: int | None = None


def expert_parts(family: Family, layer: LayerShape, index: int, role: str) -> list[Part]:
    """Return the linears of a mixture that hold an MLP role, in the order of its units.

    An expert without units has none.
    """
    found = []
    for expert, units in enumerate(layer.expert_spans):
        number = expert if expert < len(layer.experts) else None
        if units.stop > units.start:
            module = family.expert_linear(index, number, role)
            found.append(Part(module, slice(0, None), units, index, expert))
    return found


def router_axes(family: Family, layer: LayerShape, index: int) -> dict[str, Axes]:
    """Return the tensors that choose and weigh the experts of a layer, with their axes."""
    mixture, name = family.mixture, family.layer_name(index)
    if mixture is None or not layer.experts:
        return {}
    found: dict[str, Axes] = {f"{family.router_name(index)}.weight": (EXPERTS, HIDDEN)}
    if correction := correction_name(family, layer, index):
        found[correction] = (EXPERTS,)
    if mixture.shared_gate is not None and layer.shared_units:
        found[f"{name}.{mixture.shared_gate}.weight"] = (ONE, HIDDEN)
    return found


def correction_name(family: Family, layer: LayerShape, index: int) -> str | None:
    """Return the tensor that a layer's router adds to its scores for the choice, if any."""
    if family.mixture is None or family.mixture.correction is None or not layer.experts:
        return None
    return f"{family.layer_name(index)}.{family.mixture.correction}"
