"""Mixtures that another tool pruned unevenly: the experts of each layer, from the tensor shapes.

A router has one row for each expert, and an expert's down projection one column for each unit.
Attention has the widths that the config states.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sgate_serve.architecture.config import dense_shapes
from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import DOWN, Family
from sgate_serve.architecture.sgate_config import (
    LayerSizes,
    SgateBlock,
    sgate_config,
    uneven_experts,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.checkpoint.ragged.widths import StoredTensor
from sgate_serve.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]


def normalize_mixtures(
    config: Mapping[str, Any], family: Family, tensors: Tensors, source: str
) -> tuple[Mapping[str, Any], str | None]:
    """Return a config that describes the experts in the files; None if it is the stock one.

    Raises CheckpointError if the files hold an expert without its router, or the reverse.
    """
    get = ConfigReader(config, source, family)
    stated = list(dense_shapes(get, family, get.integer("num_hidden_layers")))
    found = [_stored_shape(family, index, each, tensors) for index, each in enumerate(stated)]
    if found == stated:
        return config, None
    hidden = get.integer("hidden_size")
    sizes = LayerSizes(family, tuple(found), hidden, hidden)
    top = sizes.top_level()
    stale = {name for key in top for name in family.synonyms(key)}
    stock = {key: value for key, value in config.items() if key not in stale} | top
    block = SgateBlock(family.name, family.name, expert_units=uneven_experts(found))
    words = f"{family.name} checkpoint, experts of each layer from the tensor shapes"
    return sgate_config(stock, sizes, block), words


def _stored_shape(family: Family, index: int, stated: LayerShape, tensors: Tensors) -> LayerShape:
    """Return a layer's shape as the files have it; as stated where they have no router."""
    assert family.mixture is not None, "only such a family has experts"
    router = tensors.get(f"{family.router_name(index)}.weight")
    if not stated.experts or router is None:
        return stated
    experts = tuple(
        _units(family.expert_linear(index, number, DOWN), router, tensors)
        for number in range(router.shape[0])
    )
    shared = stated.shared_units and _units(
        family.expert_linear(index, None, DOWN), router, tensors
    )
    units, top_k = sum(experts) + shared, min(stated.top_k, len(experts))
    return replace(stated, mlp_units=units, experts=experts, top_k=top_k)


def _units(module: str, router: StoredTensor, tensors: Tensors) -> int:
    down = tensors.get(f"{module}.weight")
    if down is None or len(down.shape) != 2:
        raise CheckpointError(
            f"{router.file}: the router of its layer has {router.shape[0]} rows, and tensor "
            f"{module}.weight is "
            + ("missing" if down is None else f"of shape {list(down.shape)}")
            + ": is a shard lost, or was a row of the router left behind?"
        )
    return down.shape[1]
