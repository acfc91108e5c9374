"""The modules that hold the roles of a layer: one linear each, in a mixture one for each expert."""

from dataclasses import dataclass

from sgate_serve.architecture.family import Family
from sgate_serve.architecture.shapes import LayerShape


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
