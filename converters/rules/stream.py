"""Rules 7 and 8: dimensions of the residual stream, and the columns that read them."""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.rules.facts import Context, Death, Flags, LayerState, ModelFacts, NormZeros
from sgate_serve.architecture.family import ATTENTION, BASE, BLOCKS, MLP, READERS, WRITERS, Family


def dead_columns(at: Context) -> Iterator[Death]:
    """A reader's column dies where what it reads is always zero, or always the same.

    8a. RMSNorm: the dimension was not written up to here, so it is zero and stays zero under the
        norm. (LayerNorm subtracts the mean: not so there.)
    8b. The norm before has effective weight 0 there (Gemma's is 1 + w).
    8c. LayerNorm with weight 0 passes its bias: `W[:, j] · β_j` moves into the reader's bias.
    """
    layer, family = at.layer, at.layer.family
    for block in BLOCKS:
        if not layer.has(block):
            continue
        norm = at.facts.norm(norm_before(family, layer.index, block))
        for role in READERS[block]:
            if role not in layer.inputs:
                continue
            axis = f"{role}.columns"
            if family.norm == "rms":
                yield Death(axis, at.unwritten[block], "nothing writes the dimension before")
            # A column that is zero already leaves no constant behind.
            constant = norm.weight & ~norm.bias & ~layer.found[role].columns
            yield Death(axis, norm.weight & ~constant, "the norm's weight is zero")
            yield Death(axis, constant, "the norm passes only its bias", constant=constant)


def norm_before(family: Family, index: int, block: str) -> str:
    """Return the module name of the norm whose output a block reads."""
    if family.residual != "post":
        return family.norm_name(index, block)
    if block == MLP:
        return family.norm_name(index, ATTENTION)
    if index:
        return family.norm_name(index - 1, MLP)
    assert family.embedding_norm is not None, "norms on the sum start with one on the embedding"
    return family.embedding_norm


def unwritten_before(
    facts: ModelFacts, layers: Sequence[LayerState], embedded: Flags
) -> Iterator[dict[str, Flags]]:
    """Yield, for each layer, the dimensions that nothing has written before each of its blocks.

    `embedded` flags those that the embeddings write.
    """
    written = embedded.copy()
    for layer in layers:
        unwritten = {}
        for block in BLOCKS:
            unwritten[block] = ~written
            written = written | written_by(facts, layer, block)
        yield unwritten


def written_by(facts: ModelFacts, layer: LayerState, block: str) -> Flags:
    """Flag the dimensions that a block may write to the stream: a row or its bias is not zero.

    A block without units still writes its bias until that has moved. A norm after the block passes
    nothing where its effective weight is zero.
    """
    family, written = layer.family, block_output(layer, block)
    if block in family.post_norms:
        post: NormZeros = facts.norm(f"{family.layer_name(layer.index)}.{family.post_norms[block]}")
        written = written & ~post.weight
    return written


def block_output(layer: LayerState, block: str) -> Flags:
    """Flag the dimensions that a block's last linear may write, before any norm behind it."""
    role = WRITERS[block]
    if role not in layer.zeros or block in layer.moved:
        return np.zeros(layer.spec.hidden_size, np.bool_)
    return np.asarray(~layer.found[role].silent_rows)


def removable_dims(facts: ModelFacts, layers: Sequence[LayerState], embedded: Flags) -> Flags:
    """Return the residual dimensions that go for good (rule 7).

    1. Nothing writes them: embeddings, output and down rows and biases are all zero. A norm behind
       a block that has weight 0 there is not enough: the dimension counts in that norm.
    2. RMSNorm only, and its divisor stays the old width: the sum of squares is unchanged.
       LayerNorm subtracts a mean over all dimensions, which makes them nonzero.
    3. A dimension that is constant, or merely never read, stays: it counts in the norm.
    4. A model without a head puts its residual dimensions out, and keeps all of them.
    """
    written = embedded.copy()
    for layer in layers:
        for block in BLOCKS:
            written |= block_output(layer, block)
    if facts.spec.family.norm != "rms" or facts.spec.task == BASE:
        return np.zeros_like(written)
    return np.asarray(~written)
