"""A small random decoder built from its real transformers config; for all variants see `zoo`."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from sgate_serve.architecture.family import CAUSAL_LM, Family

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Large enough that the two best logits differ clearly.
    "initializer_range": 0.2,
    "eos_token_id": None,
}


def small_model(family: Family, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """Return a random model whose biases and norms are random too, so that every error shows."""
    torch.manual_seed(seed)
    config = getattr(transformers, family.config_class)(**SIZES | sizes)
    made = getattr(transformers, family.tasks[CAUSAL_LM].model_class)
    model: PreTrainedModel = made(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
        elif "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model
