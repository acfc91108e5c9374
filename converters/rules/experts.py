"""Rule 13: experts of a mixture that its router never chooses."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Flags, ModelFacts
from converters.rules.findings import Finding, LayerView


def closed_experts(view: LayerView) -> Iterator[Finding]:
    """Remove the experts that are closed in the router, with all their units.

    1. A closed expert's logit is -infinity: its share is 0, and the softmax over the others is that
       of a router without its row. So it is exact whether the shares are normalised before or after
       the choice, and also where fewer experts stay than a token uses: the shares of the further
       ones were 0. A sigmoid of -infinity is 0 as well. A correction that is added to the scores
       for the choice is -infinity, too, and goes with the row.
    2. Zero weights do *not* close an expert. One that writes nothing is still chosen, and its share
       is missing from the others; a zero row of the router is a logit of 0, which may win. Such an
       expert loses its units (rule 1) and keeps its row.
    """
    layer = view.layer
    closed = closed_in(view.facts, layer.index)
    if closed.any():
        units = closed_units(view.facts, layer.index)
        yield Finding("mlp_units", units, "its expert is closed")
        yield Finding("experts", closed, "closed: the router never chooses it")


def closed_in(facts: ModelFacts, index: int) -> Flags:
    """Flag the closed experts of a layer, [experts]; none in a layer that is no mixture."""
    family, shape = facts.spec.family, facts.spec.layers[index]
    none = np.zeros(len(shape.experts), np.bool_)
    if family.mixture is None:
        return none
    return facts.closed_experts.get(family.router_name(index), none)


def closed_units(facts: ModelFacts, index: int) -> Flags:
    """Flag the MLP units of a layer that closed experts have, [units]."""
    shape = facts.spec.layers[index]
    units = np.zeros(shape.mlp_units, np.bool_)
    for expert in np.flatnonzero(closed_in(facts, index)):
        units[shape.expert_spans[expert]] = True
    return units
