"""Tiny random models of any family, as transformers writes them, and changes to their files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS, EXPERTS, UNITS, HIDDEN = 4, 8, 16, 32
SIZES: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "moe_intermediate_size": UNITS,
    "shared_expert_intermediate_size": UNITS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    **{f"{kind}_token_id": number for number, kind in enumerate(("pad", "bos", "eos"))},
}
BLOCK = "model.layers.{}.mlp"
ROUTER, BIAS = f"{BLOCK}.gate.weight", f"{BLOCK}.gate.e_score_correction_bias"
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def write(model_type: str, folder: Path) -> Path:
    """Let transformers write a random model of SIZES."""
    sizes = AutoConfig.for_model(model_type)
    for name, value in SIZES.items():
        if hasattr(sizes, name):
            setattr(sizes, name, value)
    kept = {
        name: value
        for name, value in sizes.to_dict().items()
        if value is not None and name not in ("layer_types", "mlp_layer_types")
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**kept))
    model.save_pretrained(folder)
    return folder


def keep(count: int, *, router: bool = True, bias: bool = True, config: bool = True) -> Change:
    """Keep the first experts of each layer, and forget parts of it."""

    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(1, LAYERS):
            for expert in range(count, EXPERTS):
                drop(f"{BLOCK.format(layer)}.experts.{expert}.")(fields, tensors)
            for name, is_cut in ((ROUTER, router), (BIAS, bias)):
                if is_cut:
                    tensors[name.format(layer)] = tensors[name.format(layer)][:count].clone()
        if config:
            fields["n_routed_experts"] = count

    return change


def drop(start: str) -> Change:
    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(start)]:
            del tensors[name]

    return change


def say(**values: Any) -> Change:
    return lambda fields, tensors: fields.update(values)


def add(name: str, *shape: int) -> Change:
    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.ones(shape)

    return change


def both(*changes: Change) -> Change:
    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for one in changes:
            one(fields, tensors)

    return change


def changed(folder: Path, target: Path, change: Change) -> Path:
    fields = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(fields, tensors)
    (target / "config.json").write_text(json.dumps(fields))
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target
