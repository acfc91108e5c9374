"""From an opened checkpoint to transformers: its config and its model, whatever layout it has.

The config is the checkpoint's own, for the file's may be one that transformers cannot load.
"""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.models import AUTO_CLASSES


def config_of(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Return the transformers config of a stock, an `sgate` or a foreign ragged folder.

    Its attention is one that computes what the config says: sdpa, transformers' default, leaves
    soft caps out without a word.
    """
    made: PreTrainedConfig = CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(
        dict(checkpoint.config)
    )
    if checkpoint.spec.has_softcap:
        made._attn_implementation = "eager"
    return made


def load_model(checkpoint: Checkpoint) -> Any:
    """Load the model of a folder, whatever its task, in fp32."""
    return AUTO_CLASSES[checkpoint.spec.task].from_pretrained(
        checkpoint.folder, config=config_of(checkpoint), dtype=torch.float32
    )
