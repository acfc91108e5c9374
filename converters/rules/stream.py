"""Rules 7 and 8: dimensions of the residual stream, and the columns that read them."""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.rules.facts import Flags, ModelFacts
from converters.rules.findings import Finding, LayerView, ModelFinding, ModelView
from converters.rules.layer_state import Columns, LayerState
from sgate_serve.architecture.family import ATTENTION, BASE, BLOCKS, MLP, READERS, WRITERS, Family


def dead_columns(view: LayerView) -> Iterator[Finding]:
    """Remove the columns of a reader whose input is always zero or constant (rule 8).

    1. RMSNorm: no embedding or earlier block writes the dimension, so it is zero, and the norm
       keeps it zero. LayerNorm subtracts the mean and does not. A block without a norm before it
       (OLMo) reads the zero itself.
    2. The effective weight of the norm before is 0 there (Gemma's is 1 + w), and so is its bias.
       Experts beside an MLP (Gemma 4) have a norm of their own: the weights of both are 0.
    3. LayerNorm with weight 0 and a nonzero bias: `W[:, j] · β_j` is a constant, which moves into
       the reader's bias. If the column is zero already, there is no constant to move.
    """
    layer, family = view.layer, view.layer.family
    for block in BLOCKS:
        if not layer.has(block):
            continue
        before = norm_before(family, layer.index, block)
        for role in READERS[block]:
            if role not in layer.inputs:
                continue
            axis = Columns(role)
            if family.norm == "rms":
                yield Finding(axis, view.unwritten[block], "nothing writes the dimension before")
            if before is None:
                continue
            norm = view.facts.norm(before)
            weight = norm.weight
            branch = family.branch(layer.index) if block == MLP else None
            if branch is not None:
                weight = weight & view.facts.norm(branch.before).weight
            constant = weight & ~norm.bias & ~layer.live_zeros[role].columns
            yield Finding(axis, weight & ~constant, "the norm's weight is zero")
            yield Finding(axis, constant, "the norm passes only its bias", constant=constant)


def norm_before(family: Family, index: int, block: str) -> str | None:
    """Return the module name of the norm whose output a block reads.

    None if it reads the stream itself.
    """
    if family.residual == "after":
        return None
    if family.residual == "post":
        if block == MLP:
            return family.norm_name(index, ATTENTION)
        if index:
            return family.norm_name(index - 1, MLP)
    elif family.has_norm(index, block):
        return family.norm_name(index, block)
    assert family.embedding_norm is not None, "a first block without a norm reads that one"
    return family.embedding_norm


def unwritten_before(
    facts: ModelFacts, layers: Sequence[LayerState], embedded: Flags
) -> Iterator[dict[str, Flags]]:
    """Yield, for each layer, the dimensions not written before each of its blocks.

    `embedded` flags the dimensions that the embeddings write. Parallel blocks read what is written
    before their layer, the MLP not what attention writes.
    """
    written = embedded.copy()
    for layer in layers:
        unwritten, before = {}, written
        for block in BLOCKS:
            unwritten[block] = ~(before if facts.spec.has_parallel_blocks else written)
            written = written | written_by(facts, layer, block)
        if facts.spec.input_width:
            # What a layer makes of its own input is read as a whole.
            written = np.ones_like(written)
        yield unwritten


def written_by(facts: ModelFacts, layer: LayerState, block: str) -> Flags:
    """Flag the dimensions that a block may write to the stream: a row or its bias is not zero.

    A block without units writes its bias until that has moved. A norm after the block writes zero
    where its effective weight is zero.
    """
    family, written = layer.family, block_output(layer, block)
    if block in family.post_norms:
        post = f"{family.layer_name(layer.index)}.{family.post_norms[block]}"
        written = written & ~facts.norm(post).weight
    return written


def block_output(layer: LayerState, block: str) -> Flags:
    """Flag the dimensions that a block's last linear may write, before any norm after it."""
    role = WRITERS[block]
    if role not in layer.zeros or block in layer.moved:
        return np.zeros(layer.spec.hidden_size, np.bool_)
    return np.asarray(~layer.live_zeros[role].silent_rows)


def unwritten_dims(view: ModelView) -> Iterator[ModelFinding]:
    """Remove the residual dimensions that nothing ever writes (rule 7).

    1. They are zero in every embedding table, and so are their rows and biases in all output and
       down projections. A norm after a block with weight 0 there is not enough: the block writes
       the dimension, and the norm counts it.
    2. RMSNorm only, and its divisor remains the old width, so the sum of squares is unchanged.
       LayerNorm subtracts a mean over all dimensions, which makes unwritten ones nonzero.
    3. A dimension that is constant, or merely never read, stays: it counts in the norm.
    4. A model without a head returns its residual stream, and keeps all dimensions.
    5. At least one dimension stays.
    6. Where layers read inputs of their own (Gemma 4), what they make of these counts as writing
       every dimension.
    """
    spec, written = view.facts.spec, view.embedded
    if spec.family.norm != "rms" or spec.task == BASE or spec.input_width:
        return
    for layer in view.layers:
        for block in BLOCKS:
            written = written | block_output(layer, block)
    yield ModelFinding("hidden", ~written, "nothing writes the dimension")
