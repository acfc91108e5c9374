"""Rule 6: blocks that write nothing to the residual stream (pre-norm families)."""

from collections.abc import Iterator

import numpy as np

from converters.rules.facts import Death, LayerFacts, Liveness
from sgate_serve.families import DOWN, OUTPUT


def silent_blocks(facts: LayerFacts, live: Liveness) -> Iterator[Death]:
    """All units or heads of a block die when its last linear writes nothing.

    6. Matrix and bias of the writing linear are zero: with a norm *before* the block, x + 0 = x,
       so the block and its norm go. A live bias keeps the block: it writes a constant.
    """
    if live.mlp_units.any() and facts.zeros[DOWN].writes_nothing:
        yield Death("mlp_units", np.ones_like(live.mlp_units), "the MLP block writes nothing")
    if live.heads.any() and facts.zeros[OUTPUT].writes_nothing:
        yield Death("heads", np.ones_like(live.heads), "the attention block writes nothing")
