"""Layers that carry a state from token to token instead of attending: a gated delta rule.

Where a family keeps them is an entry of its own in the family table; which layers of a model are
such is in its config.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Added to the sum of squares whose root a query and a key are divided by; fixed in transformers.
UNIT_EPSILON = 1e-6


@dataclass(frozen=True)
class Recurrence:
    """Where a family keeps its recurrent layers; names are inside a layer.

    `block` stands in the place of attention, and `linears` in that of its linears. A causal
    convolution follows each row of query, key and value, which share one module. A head has a
    value, an output gate, and the two numbers that say how much of its state a token renews and
    keeps; several heads share a query and a key, as they share a key and a value in attention.
    """

    block: str
    linears: Mapping[str, str]
    # A depthwise convolution without bias, of the rows of query, then of key, then of value.
    convolution: str
    # Tensors with a number for each head: the logarithm of its decay, and what is added to steps.
    decay: str
    step: str
    # Over the output of each head, before the gate multiplies it.
    norm: str
    # The rows of fused roles alternate by key head, those of the first with all its values first.
    alternates_by_key_head: bool = False
