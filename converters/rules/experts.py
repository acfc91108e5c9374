"""Rule 13: experts of a mixture that its router never chooses."""

from collections.abc import Iterator

import numpy as np

from converters.rules.findings import Finding, LayerView


def closed_experts(view: LayerView) -> Iterator[Finding]:
    """Remove the experts that are closed in the router, with all their units.

    1. A closed expert's logit is -infinity: its share is 0, and the softmax over the others is that
       of a router without its row. So it is exact whether the shares are normalised before or after
       the choice, and also where fewer experts stay than a token uses: the shares of the further
       ones were 0.
    2. Zero weights do *not* close an expert. One that writes nothing is still chosen, and its share
       is missing from the others; a zero row of the router is a logit of 0, which may win. Such an
       expert loses its units (rule 1) and keeps its row.
    """
    layer = view.layer
    if not layer.shape.experts:
        return
    assert layer.family.mixture is not None, "only layers of such a family have experts"
    router = f"{layer.family.layer_name(layer.index)}.{layer.family.mixture.router}"
    closed = view.facts.closed_experts.get(router)
    if closed is None:
        return
    units = np.zeros_like(layer.mlp_units)
    for expert in np.flatnonzero(closed):
        units[layer.shape.expert_spans[expert]] = True
    yield Finding("mlp_units", units, "its expert is closed")
    yield Finding("experts", closed, "closed: the router never chooses it")
