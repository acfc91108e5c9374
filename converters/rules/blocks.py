"""Rule 6: blocks that write nothing to the residual stream, or always the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converters.rules.facts import Context, Death, LayerState, ModelFacts
from sgate_serve.architecture.family import ATTENTION, BLOCKS, MLP, WRITERS

UNITS = {ATTENTION: "heads", MLP: "mlp_units"}


def silent_blocks(at: Context) -> Iterator[Death]:
    """All units or heads of a block die when its last linear writes nothing.

    1. Matrix and bias of the writing linear are zero. With a norm *before* the block, x + 0 = x:
       the block and its norm go. With one on the sum (BERT), the block goes and the norm stays.
    2. A norm after the block (Gemma): the norm of zero is zero, and it writes nothing either where
       its effective weight is zero.
    """
    layer = at.layer
    for block in BLOCKS:
        if not layer.has(block):
            continue
        zeros = layer.found[WRITERS[block]]
        silent = zeros.silent_rows | ~layer.hidden
        cause = f"the {block} block writes nothing"
        if block in layer.family.post_norms:
            post = f"{layer.family.layer_name(layer.index)}.{layer.family.post_norms[block]}"
            silent = silent | at.facts.norm(post).weight
        if silent.all():
            yield Death(UNITS[block], np.ones_like(layer.units_of(block)), cause)


@dataclass(frozen=True)
class Move:
    """A block that writes only a constant, and the tensor that takes the constant over.

    `writer` is the layer and block whose output bias that is, None for an embedding or a norm.
    """

    layer: int
    block: str
    tensor: str
    writer: tuple[int, str] | None


def constant_target(
    facts: ModelFacts, layers: Sequence[LayerState], index: int, block: str
) -> Move | None:
    """Return where the constant of a block without units can go, or None where it must stay.

    1. Norms before the blocks: into the output bias of the block before, for nothing reads the
        stream in between; of the first block into the position table or an *untied* embedding.
    2. Norms on the sum: into the bias of the norm before, whose only other reader is the sum.
    3. Norms after the block: it stays, for the constant would have to pass the norm.
    4. An embedding in 16 bits takes none: it would have to be stored in fp32, twice as large.
    """
    spec, family = facts.spec, facts.spec.family
    if family.residual == "sandwich":
        return None
    before = _blocks_before(index, block)
    if family.residual == "post":
        norm = next((family.norm_name(*place) for place in before), family.embedding_norm)
        return Move(index, block, f"{norm}.bias", None)
    for place in before:
        if layers[place[0]].has(place[1]):
            writer = family.linear(place[0], WRITERS[place[1]])
            return Move(index, block, f"{writer}.bias", place)
    if family.position_table is not None:
        return Move(index, block, f"{family.position_table}.weight", None)
    if spec.tied_head or not facts.has_exact_sums:
        return None
    return Move(index, block, f"{family.embedding}.weight", None)


def _blocks_before(index: int, block: str) -> list[tuple[int, str]]:
    """Return the blocks before one in the order of the forward, the nearest first."""
    places = [(layer, name) for layer in range(index + 1) for name in BLOCKS]
    return places[: places.index((index, block))][::-1]
