"""Small random Llama checkpoints: dense ones, and pruned `sgate` folders with their oracle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM

from sgate_serve.architecture.family import (
    ATTENTION,
    ATTENTION_ROLES,
    DOWN,
    KEY,
    MLP,
    MLP_ROLES,
    OUTPUT,
    QUERY,
    VALUE,
)
from sgate_serve.architecture.llama_families import LLAMA
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from tests.families.small_models import small_model


@dataclass(frozen=True)
class Kept:
    """What one layer keeps: its KV heads (with all their query heads) and MLP units."""

    kv_heads: tuple[int, ...]
    mlp_units: tuple[int, ...]


# Uneven widths, layer 0 without attention, a layer without MLP, one with nothing at all.
UNEVEN = (
    Kept((), tuple(range(0, 30, 2))),
    Kept((1,), tuple(range(7))),
    Kept((), ()),
    Kept((0, 1), ()),
    Kept((0,), tuple(range(30))),
)
EMPTY = Kept((), ())


def dense_llama(seed: int = 0, **sizes: Any) -> LlamaForCausalLM:
    """Return a random Llama; see `small_model`."""
    model = small_model(LLAMA, seed, **sizes)
    assert isinstance(model, LlamaForCausalLM)
    return model


def save(model: LlamaForCausalLM, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    return Checkpoint.open(folder)


def save_pruned(
    model: LlamaForCausalLM, kept: Sequence[Kept], folder: Path, extra_biases: Sequence[str] = ()
) -> Checkpoint:
    """Write the `kept` parts of `model` as an `sgate` folder, and mask `model` to match.

    The folder is written without the converters, so that a failing test points to one of them.
    """
    dense_config = json.loads(model.config.to_json_string(use_diff=False))
    spec = ModelSpec.from_config(dense_config, "dense config")
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for index, layer in enumerate(kept):
        _shrink_layer(weights, spec, index, layer)
        _mask_layer(model, spec, index, layer)
    if spec.tied_head:
        del weights[f"{spec.family.head}.weight"]
    for name in _absent_biases(weights, extra_biases):
        del weights[name]
    config = _pruned_config(dense_config, spec, kept, extra_biases)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(folder)


def reference_logits(model: LlamaForCausalLM, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the oracle's logits [s, vocab] for `tokens` [s]."""
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens)[None]).logits[0].numpy())


def reference_greedy(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> list[int]:
    """Return the oracle's `count` greedy tokens after `prompt`, computed without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits(model, np.array(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def random_tokens(length: int, seed: int = 0, vocab_size: int = 97) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocab_size, length)


def _kept_dims(spec: ModelSpec, index: int, kept: Kept) -> dict[str, NDArray[np.int64]]:
    """Return, for each role, the rows that stay (columns for the output and down projection)."""
    shape = spec.layers[index]
    kv_heads, units = np.array(kept.kv_heads, np.int64), np.array(kept.mlp_units, np.int64)
    group = np.arange(shape.queries_per_kv)
    heads = (kv_heads[:, None] * shape.queries_per_kv + group).reshape(-1)
    dims = np.arange(shape.head_dim)
    query, kv = ((h[:, None] * shape.head_dim + dims).reshape(-1) for h in (heads, kv_heads))
    attention = {QUERY: query, KEY: kv, VALUE: kv, OUTPUT: query}
    return attention | dict.fromkeys(MLP_ROLES, units)


def _shrink_layer(weights: dict[str, Any], spec: ModelSpec, index: int, kept: Kept) -> None:
    for block in _skipped(kept):
        del weights[f"{spec.family.norm_name(index, block)}.weight"]
    for role, dims in _kept_dims(spec, index, kept).items():
        name = spec.family.linear(index, role)
        weight, bias = weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias", None)
        if not len(dims):
            continue
        reads_hidden = role not in (OUTPUT, DOWN)
        weights[f"{name}.weight"] = (weight[dims] if reads_hidden else weight[:, dims]).copy()
        if bias is not None:
            weights[f"{name}.bias"] = (bias[dims] if reads_hidden else bias).copy()


def _mask_layer(model: LlamaForCausalLM, spec: ModelSpec, index: int, kept: Kept) -> None:
    """Zero the columns of output and down that are removed, and the biases of skipped blocks."""
    dims = _kept_dims(spec, index, kept)
    for role in (OUTPUT, DOWN):
        module = model.get_submodule(spec.family.linear(index, role))
        mask = torch.zeros(module.weight.shape[1])
        mask[dims[role]] = 1
        module.weight.data *= mask
        if not len(dims[role]) and module.bias is not None:
            module.bias.data.zero_()


def _skipped(kept: Kept) -> list[str]:
    blocks = {ATTENTION: kept.kv_heads, MLP: kept.mlp_units}
    return [block for block, survivors in blocks.items() if not survivors]


def _absent_biases(weights: dict[str, Any], extra_biases: Sequence[str]) -> list[str]:
    """Name the biases to leave out: all except `extra_biases`, or none if that is empty."""
    if not extra_biases:
        return []
    kept = {f"{name}.bias" for name in extra_biases}
    return [name for name in weights if name.endswith(".bias") and name not in kept]


def _pruned_config(
    dense: dict[str, Any], spec: ModelSpec, kept: Sequence[Kept], extra_biases: Sequence[str]
) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for index, layer in enumerate(kept):
        num_kv_heads = len(layer.kv_heads)
        sizes = {
            "num_attention_heads": num_kv_heads * spec.layers[index].queries_per_kv,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": len(layer.mlp_units),
        }
        present = {key: size for key, size in sizes.items() if size}
        layers[f"{index:02d}"] = {"skip": _skipped(layer)} | present
    config = dense | {
        "model_type": "sgate",
        "architectures": ["SGateLlamaForCausalLM"],
        "per_layer_config": layers,
        "sgate": {
            "version": 1,
            "family": spec.family.name,
            "base_model_type": "llama",
            "extra_biases": list(extra_biases),
        },
    }
    if extra_biases:
        config |= {"attention_bias": False, "mlp_bias": False}
    return config


def silence_biases(model: LlamaForCausalLM, spec: ModelSpec, kept: Sequence[str]) -> None:
    """Zero every bias except those of the modules `kept`, so that the rest can be left out."""
    for index in range(len(spec.layers)):
        for role in (*ATTENTION_ROLES, *MLP_ROLES):
            name = spec.family.linear(index, role)
            if name not in kept:
                model.get_submodule(name).bias.data.zero_()
