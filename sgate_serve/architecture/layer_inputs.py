"""Layers that read a vector of each token made for them alone, besides the stream (Gemma 4)."""

from collections.abc import Mapping
from dataclasses import dataclass

# The axes of their tensors: rows of the table, one vector, and the vectors of all layers.
INPUT_VOCAB, INPUT, INPUTS = "input vocab", "input", "inputs"


@dataclass(frozen=True)
class LayerInputs:
    """Where a family keeps what makes such vectors, and what each layer does with its own.

    A token's vectors are a row of `table` plus a projection of its embedding. After its other
    blocks, a layer multiplies act(`gate` of the stream) by its vector, and adds a projection of
    that to the stream, through a norm. All of this stays whole.
    """

    table: str
    # Names inside a layer, with the axes of the tensors.
    tensors: Mapping[str, tuple[str, ...]]
    # Fields of the config: the width of a vector, 0 without any, and the rows of the table.
    width: str = "hidden_size_per_layer_input"
    vocab: str = "vocab_size_per_layer_input"
