"""A small random model of every family, from its real transformers config."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from sgate_serve.family import Family

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Wide enough that the two best logits differ clearly.
    "initializer_range": 0.2,
    "eos_token_id": None,
}
# What sets a family apart, switched on: each is one more model to test.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "mistral": [{"sliding_window": None}, {"sliding_window": 5}],
    "qwen2": [
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ],
    "qwen3": [
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
        | {"attention_bias": True},
    ],
}


def small_model(family: Family, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """Return a random model; biases and norms are random too, so that none can go unnoticed."""
    torch.manual_seed(seed)
    config = getattr(transformers, family.classes[0])(**SIZES | sizes)
    model: PreTrainedModel = getattr(transformers, family.classes[2])(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
        elif "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model
