"""Rule 14: heads of recurrent layers that do not reach the output."""

from collections.abc import Iterator

import numpy as np

from converters.rules.findings import Finding, LayerView
from sgate_serve.architecture.activations import is_zero_at_zero
from sgate_serve.architecture.family import ATTENTION, KEY, OUTPUT, OUTPUT_GATE, QUERY, VALUE


def dead_recurrent_heads(view: LayerView) -> Iterator[Finding]:
    """Remove heads of a recurrent layer of which nothing reaches the output (rule 14).

    1. For every dimension of the head, the output column is zero, or the row and bias of its gate
       are (a gate is a SiLU, which maps 0 to 0), or those of its value are and the activation after
       the convolution maps 0 to 0: then its part of the state, which starts as zeros, stays so, and
       the norm over the head keeps it zero. Single dimensions stay: they count in that norm.
    2. Or the rows and biases of all its queries, or of all its keys, are zero, under the same
       activation: a query of zeros reads nothing from the state, and a key of zeros writes nothing
       to it. In attention such a head averages; here it is dead.
    3. Convolutions have no bias, so that they map zeros to zeros.
    """
    layer, shape = view.layer, view.layer.shape
    if not layer.has(ATTENTION) or not shape.is_recurrent:
        return
    zeros, heads = layer.live_zeros, (shape.num_heads, shape.head_dim)
    stays_zero = is_zero_at_zero(layer.spec.activation)
    unread = zeros[OUTPUT].columns | zeros[OUTPUT_GATE].silent_rows
    if stays_zero:
        unread = unread | zeros[VALUE].silent_rows
    yield Finding("heads", np.all(unread.reshape(heads), axis=1), "no dimension reaches the output")
    for role in (QUERY, KEY) if stays_zero else ():
        silent = zeros[role].silent_rows.reshape(shape.num_kv_heads, shape.key_dim).all(axis=1)
        dead = np.repeat(silent, shape.queries_per_kv)
        yield Finding("heads", dead, f"{role} rows and biases are zero")
