"""A small folder as NVIDIA's Puzzle leaves gpt-oss, and transformers' layers with its weights."""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from tests.families.mxfp4_folders import WEIGHTS, Tensors, pack_folder
from tests.families.zoo import ZOO, Variant, build

WINDOWS: Sequence[int | None] = (3, 7, None, 3, 7, None)
EXPERTS = (5, 4, 3, 5, 2, 4)
CONFIG: dict[str, Any] = {
    **ZOO["gpt_oss"][0].config,
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "intermediate_size": 32,
}
TOKENS = np.random.default_rng(0).integers(0, 97, 24)
Fields = dict[str, Any]


def stock_model(folder: Path, **sizes: Any) -> Any:
    """Build transformers' own layers, each with as many experts as its block says.

    Its weights are those of the packed folder, which is written first.
    """
    model: Any = build(Variant("gpt_oss", "puzzle", "causal-lm", CONFIG | sizes), 0)
    for index, count in enumerate(EXPERTS):
        config = deepcopy(model.config)
        config.num_local_experts = count
        whole, cut = model.model.layers[index].mlp, GptOssMLP(config)
        cut.load_state_dict({name: value[:count] for name, value in whole.state_dict().items()})
        model.model.layers[index].mlp = cut
    # Without their heads, these blocks write nothing.
    for index in (0, 3):
        torch.nn.init.zeros_(model.model.layers[index].self_attn.o_proj.bias)
    floats = folder.with_name("floats")
    floats.mkdir()
    save_file(model.state_dict(), floats / WEIGHTS, {"format": "pt"})
    (floats / "config.json").write_text(json.dumps(model.config.to_dict()))
    stored = load_file(pack_folder(floats, folder, as_puzzle) / WEIGHTS)
    for name in [name for name in stored if name.endswith("_blocks")]:
        stack, blocks = name.removesuffix("_blocks"), stored.pop(name)
        stored[stack] = convert_moe_packed_tensors(blocks, stored.pop(f"{stack}_scales"))
    model.load_state_dict({name: value for name, value in stored.items() if "k_scale" not in name})
    return model.eval()


def as_puzzle(fields: Fields, tensors: Tensors) -> None:
    """Change a config, and add what the published folder has besides."""
    for key in ("sliding_window", "num_local_experts"):
        del fields[key]
    blocks = zip(EXPERTS, WINDOWS, strict=True)
    fields |= {
        "model_type": "gpt_oss_puzzle",
        "architectures": ["GptOssPuzzleForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_gpt_oss_puzzle.GptOssPuzzleConfig"},
        "block_configs": [
            {"num_local_experts": count, "sliding_window": window} for count, window in blocks
        ],
        "layer_types": [
            "full_attention" if window is None else "sliding_attention" for window in WINDOWS
        ],
    }
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(())
