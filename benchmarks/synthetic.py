"""Synthetic Llama checkpoints of any size: seeded noise, or real headers over holes.

The weights mean nothing; widths, dtypes and files are those of real models.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, Array
from sgate_serve.checkpoint.writer import (
    FolderWriter,
    TensorHeader,
    divide_into_shards,
    file_header,
    new_folder,
)
from sgate_serve.gates import Gates

# https://huggingface.co/meta-llama/Llama-3.2-1B with an untied head; the number of layers varies.
LLAMA_1B: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
# https://huggingface.co/meta-llama/Llama-3.1-70B
LLAMA_70B: Mapping[str, Any] = {
    **LLAMA_1B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
TENSORS_PER_HEADER_FILE = 25


def config_of_size(num_bytes: int) -> dict[str, Any]:
    """Return the 1B config with as many layers as come nearest `num_bytes`, at least one."""
    one, two = (_num_bytes({**LLAMA_1B, "num_hidden_layers": layers}) for layers in (1, 2))
    layers = 1 + round((num_bytes - one) / (two - one))
    return {**LLAMA_1B, "num_hidden_layers": max(1, layers)}


def write_noise(folder: Path, config: Mapping[str, Any], num_shards: int, seed: int) -> None:
    """Write bf16 weights of magnitude about 1/50, none of them zero, in `num_shards` files.

    The noise repeats within a tensor, and no two tensors are alike. Raises ValueError if the
    tensors cannot fill that many files.
    """
    headers = _headers(config)
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        writer.write_weights(headers, _noise(headers, seed), _shard_bytes(headers, num_shards))


def write_headers_only(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a checkpoint with real headers whose data are holes that occupy no disk space."""
    headers = _headers(config)
    names: dict[str, str] = {}
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        for start in range(0, len(headers), TENSORS_PER_HEADER_FILE):
            part = headers[start : start + TENSORS_PER_HEADER_FILE]
            name = f"model-{start:05d}.safetensors"
            _write_holes(writer, name, part)
            names |= {header.name: name for header in part}
        writer.write_json(INDEX_FILE, {"weight_map": names})
        writer.last = [INDEX_FILE]


def write_gates(folder: Path, base: Checkpoint, closed: float, seed: int) -> None:
    """Write coupled gates for `base`: a share is closed, the others are fractions to be folded."""
    generator = np.random.default_rng(seed)
    values = {}
    for index, layer in enumerate(base.spec.layers):
        name = base.spec.family.layer_name(index)
        for kind, size in (("mlp_units", layer.mlp_units), ("kv_groups", layer.num_kv_heads)):
            gates = generator.uniform(0.5, 1, size).astype(np.float32)
            gates[generator.permutation(size)[: round(closed * size)]] = 0
            values[f"{name}.{kind}"] = gates
    Gates("synthetic", "llama", "coupled", base.fingerprint, values).write(folder)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the sizes of a checkpoint for a record."""
    spec = checkpoint.spec
    return {
        "bytes": checkpoint.num_bytes,
        "tensors": len(checkpoint.tensors),
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        **asdict(spec.layers[0]),
    }


def _headers(config: Mapping[str, Any]) -> list[TensorHeader]:
    shapes = ModelSpec.from_config(config, "synthetic config").tensor_shapes()
    return [TensorHeader(name, "BF16", shape) for name, shape in shapes.items()]


def _num_bytes(config: Mapping[str, Any]) -> int:
    return sum(header.num_bytes for header in _headers(config))


def _shard_bytes(headers: list[TensorHeader], num_shards: int) -> int:
    """Return the smallest size, within 1%, at which the tensors fill `num_shards` files."""
    size = sum(header.num_bytes for header in headers) // num_shards
    while len(shards := list(divide_into_shards(headers, size))) > num_shards:
        size += 1 + size // 100
    if len(shards) < num_shards:
        raise ValueError(f"{len(headers)} tensors cannot fill {num_shards} shards; ask for fewer")
    return size


def _noise(headers: list[TensorHeader], seed: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    signs = generator.choice([-0.02, 0.02], 2**16)
    for header in headers:
        block = (signs * generator.uniform(0.5, 1.5, signs.size)).astype(ml_dtypes.bfloat16)
        yield (
            np.resize(block.view(np.uint16), math.prod(header.shape))
            .view(block.dtype)
            .reshape(header.shape)
        )


def _write_holes(writer: FolderWriter, name: str, headers: list[TensorHeader]) -> None:
    start = file_header(headers, {"format": "pt"})
    with writer.path(name).open("wb") as file:
        file.write(start)
        file.truncate(len(start) + sum(header.num_bytes for header in headers))
