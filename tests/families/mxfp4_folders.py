"""Stock folders whose experts are in 4 bits, as the published gpt-oss ones are stored."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
# What the published folders leave in bf16.
FLOATS = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
QUANTIZED: Mapping[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": FLOATS}
# Nothing here is taken from the code under test: steps of e2m1, halfway between which one rounds.
STEPS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Tensors], None]


def packed(stack: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a stack [experts, in, out] to blocks [.., out, in / 32, 16] and their scales."""
    rows = stack.swapaxes(1, 2)
    blocks = rows.reshape(*rows.shape[:2], -1, 32)
    largest = np.maximum(np.abs(blocks).max(-1), 2.0**-120)
    exponents = np.floor(np.log2(largest)).astype(np.int32) - 2
    scaled = blocks / np.ldexp(np.float32(1), exponents)[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - STEPS).argmin(-1) + 8 * (scaled < 0)
    pairs = codes[..., ::2] | codes[..., 1::2] << 4
    return torch.from_numpy(pairs.astype(np.uint8)), torch.from_numpy(
        (exponents + 127).astype(np.uint8)
    )


def pack_folder(source: Path, target: Path, change: Change | None = None) -> Path:
    """Write a stock folder in bf16 with its experts in 4 bits, after `change`."""
    tensors = Tensors()
    for name, value in load_file(source / WEIGHTS).items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(value.float().numpy())
        else:
            tensors[name] = value.to(torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": dict(QUANTIZED), "dtype": "bfloat16"}
    if change is not None:
        change(config, tensors)
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, target / WEIGHTS, {"format": "pt"})
    return target
