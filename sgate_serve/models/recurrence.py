"""Recurrent layers of a stock model, narrowed to their own heads."""

import torch
from torch import nn

from sgate_serve.architecture.recurrent_layers import CHANNELS, HEADS, recurrent_sizes
from sgate_serve.architecture.spec import ModelSpec


def narrow_recurrence(block: nn.Module, spec: ModelSpec, index: int) -> None:
    """Give a layer's recurrent block its own counts, convolution and vectors; linears it has."""
    shape, own = spec.layers[index], spec.family.recurrence
    assert own is not None, "only such a family has recurrent layers"
    sizes = recurrent_sizes(shape, spec.kernel)
    counts = {
        "num_v_heads": shape.num_heads,
        "num_k_heads": shape.num_kv_heads,
        "key_dim": shape.num_kv_heads * shape.key_dim,
        "value_dim": shape.num_heads * shape.head_dim,
        "conv_dim": sizes[CHANNELS],
    }
    for name, count in counts.items():
        assert hasattr(block, name), name
        setattr(block, name, count)
    convolution = nn.Conv1d(
        *(sizes[CHANNELS], sizes[CHANNELS], spec.kernel),
        groups=sizes[CHANNELS],
        padding=spec.kernel - 1,
        bias=False,
    )
    block.set_submodule(_inside(own.convolution), convolution)
    for name in (own.decay, own.step):
        setattr(block, _inside(name), nn.Parameter(torch.empty(sizes[HEADS])))


def _inside(name: str) -> str:
    """Return a name inside a layer as its block has it."""
    return name.rpartition(".")[2]
