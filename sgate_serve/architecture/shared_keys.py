"""Layers without keys and values of their own: they read those of an earlier one (Gemma 4).

The last layers of such a model do, as many as its config says. Each reads the last earlier layer of
its type, with a window or without one, that has keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.errors import CheckpointError

NUM_SHARED, DOUBLED = "num_kv_shared_layers", "use_double_wide_mlp"
Windows = Sequence[int | None]


def with_shared_keys(
    get: ConfigReader, family: Family, shapes: Sequence[LayerShape], windows: Windows
) -> Iterator[LayerShape]:
    """Yield the shapes of layers, of which the last may lack keys and have twice the MLP units.

    Raises CheckpointError if a layer has none to read.
    """
    count = get.integer(NUM_SHARED, 0) if family.shares_keys else 0
    first = len(shapes) - count
    for index, shape in enumerate(shapes):
        if index < first:
            yield shape
            continue
        if windows[index] not in windows[: max(first, 0)]:
            raise CheckpointError(
                f"{get.source}: {NUM_SHARED} {count} of {len(shapes)} layers: layer {index} reads "
                "the keys of an earlier layer, and none of its type has any"
            )
        factor = 2 if get(DOUBLED) else 1
        own = shape.shared_units if shape.experts else shape.mlp_units
        # In other configs the top level has the largest width, whatever the layer.
        is_stock = get.values.get("model_type") == family.name
        units = shape.mlp_units + (factor - 1) * own * is_stock
        yield replace(shape, has_keys=False, mlp_factor=factor, mlp_units=units)


def source_of(layers: Sequence[LayerShape], windows: Windows, index: int) -> int:
    """Return the layer whose keys and values a layer reads, mostly its own."""
    if layers[index].has_keys:
        return index
    earlier = (i for i in range(index) if layers[i].has_keys and windows[i] == windows[index])
    return max(earlier)


def sharing_layers(layers: Sequence[LayerShape], windows: Windows) -> Iterator[tuple[int, ...]]:
    """Yield, for each layer, all that read the keys that it reads; none if it is alone."""
    sources = [source_of(layers, windows, index) for index in range(len(layers))]
    readers: dict[int, list[int]] = {}
    for index, source in enumerate(sources):
        readers.setdefault(source, []).append(index)
    for source in sources:
        yield tuple(readers[source]) if len(readers[source]) > 1 else ()


def check_shared_keys(layers: Sequence[LayerShape], windows: Windows, source: str) -> None:
    """Raise CheckpointError if a layer that attends reads keys that are not there."""
    for index, layer in enumerate(layers):
        read = layers[source_of(layers, windows, index)]
        if layer.num_heads and layer.num_kv_heads != read.num_kv_heads:
            raise CheckpointError(
                f"{source}: layer {index} reads {layer.num_kv_heads} KV heads of an earlier layer, "
                f"which has {read.num_kv_heads}; convert the base checkpoint again"
            )
