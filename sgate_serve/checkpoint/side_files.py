"""What transformers would read besides `config.json` and the weights: refused by name.

A file or key that changes the model must not be passed over. docs/format.md lists all files of a
model folder and what becomes of each.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from sgate_serve.checkpoint.other_layouts import ADAPTER_CONFIG, adapter_kind, merge_beside_remedy
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.errors import CheckpointError

# Keys of config.json that make transformers or vLLM read something else, and what to do.
REDIRECTIONS: Mapping[str, str] = {
    "configuration_files": "copy the file that is meant to config.json and remove the key",
    "transformers_weights": "rename the file that it names to model.safetensors and remove the key",
    "compression_config": "give the unquantized checkpoint",
}
# Endings of tensors that only quantized checkpoints have: GPTQ, AWQ, bitsandbytes, HQQ, FP8,
# compressed-tensors, MXFP4.
PACKED = (
    *(".qweight", ".qzeros", ".g_idx", ".SCB", ".weight.absmax", ".weight.quant_map"),
    *(".W_q", ".weight_packed", ".weight_scale_inv", "_proj_blocks", "_proj_scales"),
)

# Endings of the gates that other tools train: FineGates, PEFT.
GATES = ("._gates_logits", ".finegates_rows", ".finegates_columns")


def check_side_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an adapter in the folder, and for keys that lead elsewhere."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: {adapter_kind(folder)} in the folder of a model, which "
            f"transformers would apply; {merge_beside_remedy(folder)}"
        )
    for key, remedy in REDIRECTIONS.items():
        if config.get(key):
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: {key} {brief(config[key])} is not followed; {remedy}"
            )


def check_plain_weights(names: Iterable[str], folder: Path) -> None:
    """Raise CheckpointError for gates, and for quantized tensors that no config declares."""
    for name in names:
        if name.endswith(GATES):
            raise CheckpointError(
                f"{folder}: tensor {name} is a gate; give the base here, and this folder with "
                "--gates"
            )
        if name.endswith(PACKED):
            raise CheckpointError(
                f"{folder}: tensor {name} belongs to quantized weights; give the unquantized "
                "checkpoint"
            )
