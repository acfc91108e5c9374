"""Rule 6: blocks that write nothing to the residual stream, or only a constant."""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.rules.facts import ModelFacts
from converters.rules.findings import Finding, LayerView, ModelView, Move, Receiver
from converters.rules.layer_state import LayerState
from converters.rules.stream import block_output
from sgate_serve.architecture.family import ATTENTION, BLOCKS, MLP, WRITERS
from sgate_serve.plan.plan import Axis

UNITS: dict[str, Axis] = {ATTENTION: "heads", MLP: "mlp_units"}


def silent_blocks(view: LayerView) -> Iterator[Finding]:
    """Remove all units or heads of a block whose last linear writes nothing.

    1. Matrix and bias of that linear are zero on the living residual dimensions. With a norm
       *before* the block, x + 0 = x: the block and its norm are removed. With a norm on the sum
       (BERT), the block is removed and the norm stays.
    2. With a norm after the block (Gemma, OLMo), a dimension counts as zero also where that norm's
       effective weight is zero; the norm maps zeros to zeros.
    """
    layer = view.layer
    for block in BLOCKS:
        if not layer.has(block):
            continue
        zeros = layer.live_zeros[WRITERS[block]]
        silent = zeros.silent_rows | ~layer.hidden
        cause = f"the {block} block writes nothing"
        if block in layer.family.post_norms:
            post = f"{layer.family.layer_name(layer.index)}.{layer.family.post_norms[block]}"
            silent = silent | view.facts.norm(post).weight
        if silent.all():
            yield Finding(UNITS[block], np.ones_like(layer.units_of(block)), cause)


def constant_blocks(view: ModelView) -> Iterator[Move]:
    """Remove blocks that write only their output bias; the tensor before receives it.

    1. No unit or head of the block is alive, and its output bias, with everything folded into it,
       is nonzero on a living residual dimension.
    2. The bias has not moved before.
    3. Another tensor can receive it exactly (`receiver_of`); otherwise the block stays.
    4. The biases of experts are no constant: each token gets those of the experts that it uses.
    """
    for layer in view.layers:
        for block in BLOCKS:
            role = WRITERS[block]
            if role not in layer.zeros or layer.has(block) or block in layer.moved:
                continue
            if block == MLP and layer.shape.experts:
                continue
            dims = ~layer.live_zeros[role].bias & layer.hidden
            receiver = receiver_of(view.facts, view.layers, layer.index, block)
            if receiver is not None and dims.any():
                yield Move(layer.index, block, dims, receiver)


def receiver_of(
    facts: ModelFacts, layers: Sequence[LayerState], index: int, block: str
) -> Receiver | None:
    """Return the tensor that can receive the constant of a block without units, if there is one.

    1. Norms before the blocks: the output bias of the nearest earlier block that has units, since
       nothing reads the stream in between. For the first block, the bias of a norm on the
       embeddings (ModernBERT), which nothing else reads, and none if that has no bias; the position
       table or an *untied* embedding otherwise. Parallel blocks are added to the stream together:
       the other block of the layer comes first, and an earlier layer only where that has no units,
       for it reads the stream.
    2. Norms on the sum: the bias of the norm before, whose only other reader is the sum.
    3. Norms after the block: none, since the constant would have to pass the norm.
    4. Each token uses only some experts, and most families' have no biases: where the nearest
       earlier block is a mixture, nothing can receive the constant. One that writes biases alone
       reads the stream as well: by its router.
    5. No number multiplies the stream after a layer (Gemma 4): it would multiply the constant too.
    6. A 16-bit embedding receives nothing: it would have to be stored in fp32, at twice the size.
       Neither does one that is scaled, or otherwise than what blocks add.
    """
    spec, family = facts.spec, facts.spec.family
    if block in family.post_norms or family.layer_scale is not None:
        return None
    before = _blocks_before(index, block, is_parallel=spec.has_parallel_blocks)
    if family.residual == "post":
        norm = next((family.norm_name(*place) for place in before), family.embedding_norm)
        return Receiver(f"{norm}.bias")
    for place in before:
        layer = layers[place[0]]
        if place[1] == MLP and layer.shape.experts and _reads_the_stream(layer):
            return None
        if layer.has(place[1]):
            writer = family.linear(place[0], WRITERS[place[1]])
            return Receiver(f"{writer}.bias", place)
    if family.embedding_norm is not None:
        return Receiver(f"{family.embedding_norm}.bias") if spec.has_norm_bias else None
    if family.position_table is not None:
        return Receiver(f"{family.position_table}.weight")
    is_scaled = spec.embedding_scale is not None or spec.residual_multiplier != 1
    if spec.tied_head or is_scaled or not facts.has_exact_sums:
        return None
    return Receiver(f"{family.embedding}.weight")


def _reads_the_stream(mixture: LayerState) -> bool:
    """Say whether a layer keeps its mixture: for its units, or for biases that are written."""
    return mixture.has(MLP) or bool((block_output(mixture, MLP) & mixture.hidden).any())


def _blocks_before(index: int, block: str, *, is_parallel: bool) -> list[tuple[int, str]]:
    """Return the blocks before one in the order of the forward, the nearest first.

    Of two parallel blocks each counts as before the other.
    """
    places = [(layer, name) for layer in range(index + 1) for name in BLOCKS]
    if is_parallel:
        return [place for place in reversed(places) if place != (index, block)]
    return places[: places.index((index, block))][::-1]
