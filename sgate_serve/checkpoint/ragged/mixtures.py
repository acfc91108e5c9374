"""Mixtures that another tool pruned unevenly: the experts of each layer, from the tensor shapes.

A router has one row for each expert, and an expert's down projection one column for each unit.
Attention has the widths that the config states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sgate_serve.architecture.config import dense_shapes
from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import DOWN, GATE, UP, Family
from sgate_serve.architecture.recurrent_layers import with_recurrent_layers
from sgate_serve.architecture.sgate_config import (
    LayerSizes,
    SgateBlock,
    narrower_windows,
    sgate_config,
    uneven_experts,
    unstated_shared,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.checkpoint.ragged.widths import StoredTensor
from sgate_serve.checkpoint.stacks import part_in_words
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]
# Fields that say which layers are mixtures.
KINDS_OF_LAYERS = ("mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace")


def normalize_mixtures(
    config: Mapping[str, Any], family: Family, tensors: Tensors, source: str
) -> tuple[Mapping[str, Any], str | None]:
    """Return a config that describes the experts in the files; None if it is the stock one.

    Raises CheckpointError if the files hold an expert without its router, or the reverse.
    """
    stated, found = stored_shapes(config, family, tensors, source)
    if found == stated:
        return config, None
    words = f"{family.name} checkpoint, experts of each layer from the tensor shapes"
    return uneven_mixture(config, family, found), words


def stored_shapes(
    config: Mapping[str, Any], family: Family, tensors: Tensors, source: str
) -> tuple[list[LayerShape], list[LayerShape]]:
    """Return the shapes of all layers as the config states them, and as the files have them."""
    get = ConfigReader(config, source, family)
    family = with_recurrent_layers(get, family)
    # Windows do not change the widths of a mixture.
    stated = list(dense_shapes(get, family, [None] * get.integer("num_hidden_layers")))
    found = [_stored_shape(family, index, each, tensors) for index, each in enumerate(stated)]
    return stated, found


def uneven_mixture(
    config: Mapping[str, Any],
    family: Family,
    layers: Sequence[LayerShape],
    windows: Sequence[int | None] = (),
) -> dict[str, Any]:
    """Return our own config of a mixture with these layers, and windows if they are of any size."""
    hidden = ConfigReader(config, CONFIG_FILE, family).integer("hidden_size")
    sizes = LayerSizes(family, tuple(layers), hidden, hidden)
    top = sizes.top_level()
    stale = {name for key in top for name in family.synonyms(key)}
    stock = {key: value for key, value in config.items() if key not in stale} | top
    block = SgateBlock(
        family.name,
        family.name,
        expert_units=uneven_experts(layers),
        shared_units=unstated_shared(family, layers),
        windows=narrower_windows(windows),
    )
    return sgate_config(stock, sizes, block)


def _stored_shape(family: Family, index: int, stated: LayerShape, tensors: Tensors) -> LayerShape:
    """Return a layer's shape as the files have it; as stated where they have no router."""
    name = f"{family.router_name(index)}.weight"
    router = tensors.get(name)
    if not stated.experts or router is None:
        _check_kind(family, index, stated, tensors)
        return stated
    if len(router.shape) != 2:
        raise CheckpointError(
            f"{router.file}: tensor {name} has shape {list(router.shape)}, expected a row for each "
            "expert"
        )
    beyond = f"{family.expert_linear(index, router.shape[0], DOWN)}.weight"
    if beyond in tensors:
        raise CheckpointError(
            f"{router.file}: tensor {name} has {router.shape[0]} rows, but there is "
            f"{part_in_words(beyond, family)}; keep as many rows as experts, in their order"
        )
    where = f"{router.file}: tensor {name} has {router.shape[0]} rows, one for each expert"
    experts = tuple(
        _units(family, index, number, where, tensors) for number in range(router.shape[0])
    )
    where = f"{router.file}: layer {index} has a shared expert by config.json"
    shared = stated.shared_units and _units(family, index, None, where, tensors)
    units, top_k = sum(experts) + shared, min(stated.top_k, len(experts))
    return replace(stated, mlp_units=units, experts=experts, top_k=top_k)


def _check_kind(family: Family, index: int, stated: LayerShape, tensors: Tensors) -> None:
    """Raise CheckpointError if a layer is a mixture in the files and an MLP by the config."""
    router, mlp = f"{family.router_name(index)}.weight", f"{family.linear(index, DOWN)}.weight"
    found = tensors.get(mlp if stated.experts else router)
    if found is not None:
        kinds = ("a mixture", "an MLP") if stated.experts else ("an MLP", "a mixture")
        fields = " and ".join(key for key in KINDS_OF_LAYERS if key in family.fields)
        raise CheckpointError(
            f"{found.file}: layer {index} is {kinds[0]} by {fields or 'its family'} in "
            f"config.json, and {kinds[1]} in the files; correct config.json"
        )


def _units(family: Family, index: int, expert: int | None, where: str, tensors: Tensors) -> int:
    """Return the width of one expert; its linears must all be there, and fit each other."""
    shapes = {}
    for role in (DOWN, GATE, UP):
        name = f"{family.expert_linear(index, expert, role)}.weight"
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{where}, and {part_in_words(name, family)} is missing; is a shard lost, or was a "
                "row of the router left behind?"
            )
        if len(tensor.shape) != 2:
            raise CheckpointError(f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}")
        shapes[name] = tensor.shape
    (down, across), *readers = shapes.items()
    for name, shape in readers:
        if shape[0] != across[1]:
            raise CheckpointError(
                f"{where}; {part_in_words(down, family)} has {across[1]} columns and "
                f"{part_in_words(name, family)} {shape[0]} rows: cut the linears of an expert alike"
            )
    return across[1]
