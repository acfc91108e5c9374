"""Models of random weights that differ from a base in the widths of their blocks alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sgate_serve.architecture.sgate_config import (
    LayerSizes,
    SgateBlock,
    sgate_config,
    stock_config,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import heads_by_type, is_stock_shape
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, Array
from sgate_serve.checkpoint.writer import TensorHeader, new_folder

LAYERS = "num_hidden_layers"
PER_LAYER = ("layer_types", "no_rope_layers")
SHARD_BYTES = 4 * 2**30
# Random numbers repeat after this many; their values do not change how long a product takes.
NOISE_SIZE = 2**20 + 7


@dataclass(frozen=True)
class Stack:
    """A model's layers, all of one shape."""

    shape: LayerShape
    num_layers: int


def write_narrow(base: Checkpoint, stack: Stack, folder: Path) -> Checkpoint:
    """Write the base with another stack and random bf16 weights; everything else is as there."""
    config = _config(base, stack)
    # A config cannot say that the pooler is missing.
    spec = replace(
        ModelSpec.from_config(config, f"{folder}/{CONFIG_FILE}"),
        lacks_pooler=base.spec.lacks_pooler,
    )
    headers = [TensorHeader(name, "BF16", shape) for name, shape in spec.tensor_shapes().items()]
    with new_folder(folder) as writer:
        writer.write_json(CONFIG_FILE, config)
        writer.write_weights(headers, _random_arrays(headers), SHARD_BYTES)
    return Checkpoint.open(folder)


def _config(base: Checkpoint, stack: Stack) -> dict[str, Any]:
    spec, num_layers = base.spec, stack.num_layers
    layers = (stack.shape,) * num_layers
    sizes = LayerSizes(spec.family, layers, spec.hidden_size, spec.norm_size)
    config = stock_config(base.config) | sizes.top_level()
    config[spec.family.keys.get(LAYERS, LAYERS)] = num_layers
    for name in PER_LAYER:
        if isinstance(config.get(name), list):
            config[name] = config[name][:num_layers]
    config["dtype"] = "bfloat16"
    narrow = replace(spec, layers=layers, windows=spec.windows[:num_layers])
    if is_stock_shape(narrow):
        return config | heads_by_type(narrow)
    return sgate_config(config, sizes, SgateBlock(spec.family.name, config["model_type"]))


def _random_arrays(headers: Sequence[TensorHeader]) -> Iterator[Array]:
    noise = np.random.default_rng(0).standard_normal(NOISE_SIZE, np.float32) * 0.02
    noise = noise.astype(ml_dtypes.bfloat16)
    for header in headers:
        if len(header.shape) == 1:
            yield np.ones(header.shape, noise.dtype)
        else:
            # numpy repeats its own types faster than bf16.
            yield np.resize(noise.view(np.uint16), header.shape).view(noise.dtype)
