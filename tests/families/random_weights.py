"""Random values for what transformers starts as ones or zeros, so that leaving it out shows."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

HYBRID_NORMS = ("Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm", "Qwen3NextRMSNorm")
# By the ending of a name.
DRAWN: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bias": lambda values: values.normal_(0, 0.1),
    # They compete with scores.
    "sinks": lambda values: values.normal_(0, 1),
    # So slowly that a state remembers a whole batch.
    "A_log": lambda values: values.uniform_(-3, 0),
    # They multiply what a router reads, and the shares that it gives.
    "router.scale": lambda values: values.uniform_(0.5, 1.5),
    "per_expert_scale": lambda values: values.uniform_(0.5, 1.5),
}


def randomize(model: PreTrainedModel) -> None:
    """Give norms, biases and other vectors of a new model random values."""
    for module in model.modules():
        name = type(module).__name__
        is_norm = isinstance(module, nn.LayerNorm) or "RMSNorm" in name
        if is_norm and hasattr(module, "weight"):
            # Gemma 2 and 3 store what is added to 1, and Qwen3.5 but for norms before its gates.
            adds_to_1 = name.startswith(("Gemma2", "Gemma3")) or name in HYBRID_NORMS
            center = 0.0 if adds_to_1 else 1.0
            module.weight.data.uniform_(center - 0.5, center + 0.5)
    for name, parameter in model.named_parameters():
        for ending, draw in DRAWN.items():
            if name.endswith(ending):
                draw(parameter.data)
    for name, buffer in model.named_buffers():
        # It multiplies the stream after a layer.
        if name.endswith("layer_scalar"):
            buffer.uniform_(0.5, 1.5)
        # It decides among scores from 0 to 1.
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.3)
