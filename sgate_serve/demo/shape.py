"""A larger model of random weights, which does not fit a CPU cache, pruned like the trained one.

Its widths are those of Qwen2-0.5B: hidden 896, MLP 4864, 14 query heads and 2 KV heads of 64. Each
layer loses the same fractions as the corresponding layer of the trained model.
"""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import TensorHeader, new_folder
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.gates import Gates
from sgate_serve.plan import LayerPlan, Plan

HIDDEN, MLP_UNITS, HEADS, KV_HEADS, HEAD_DIM = 896, 4864, 14, 2, 64
SHARD_BYTES = 2 * 2**30


def shape_config(sizes: DemoSizes) -> dict[str, object]:
    """Return the stock Llama config of the random model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP_UNITS,
        "num_hidden_layers": sizes.shape_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": sizes.shape_vocab_size,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
    }


def write_shape(folder: Path, sizes: DemoSizes) -> None:
    """Write the bf16 model with random weights, one tensor at a time."""
    config = shape_config(sizes)
    spec = ModelSpec.from_config(config, "config.json")
    headers = [TensorHeader(name, "BF16", shape) for name, shape in spec.tensor_shapes().items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        writer.write_weights(headers, _random_arrays(headers, sizes.seed), SHARD_BYTES)


def write_shape_gates(base: Checkpoint, trained: Plan, folder: Path, seed: int) -> None:
    """Write gates that close, in each layer, the fractions that `trained` removes at its depth."""
    generator = np.random.default_rng(seed)
    family, values = FAMILIES[trained.family], {}
    for index, shape in enumerate(base.spec.layers):
        like = trained.layers[index * len(trained.layers) // len(base.spec.layers)]
        units, groups = _removed_fractions(like)
        name = family.layer_name(index)
        values[f"{name}.mlp_units"] = _closed(generator, shape.mlp_units, units)
        values[f"{name}.kv_groups"] = _closed(generator, shape.num_kv_heads, groups)
    Gates(
        method="same fractions per layer as a trained model, units at random",
        family=trained.family,
        granularity="coupled",
        base_fingerprint=base.fingerprint,
        values=values,
        base_digest=base.digest,
    ).write(folder)


def _removed_fractions(layer: LayerPlan) -> tuple[float, float]:
    units = 1 - len(layer.mlp_units) / layer.dense.mlp_units
    return units, 1 - len(layer.kv_heads) / layer.dense.num_kv_heads


def _closed(generator: np.random.Generator, size: int, fraction: float) -> NDArray[np.float32]:
    gates = np.ones(size, np.float32)
    gates[generator.permutation(size)[: round(size * fraction)]] = 0
    return gates


def _random_arrays(headers: list[TensorHeader], seed: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    for header in headers:
        if len(header.shape) == 1:
            yield np.ones(header.shape, ml_dtypes.bfloat16)
        else:
            values = generator.standard_normal(header.shape, np.float32)
            yield (values * 0.02).astype(ml_dtypes.bfloat16)
