"""Random values for what transformers starts as ones or zeros, so that leaving it out shows."""

from torch import nn
from transformers import PreTrainedModel


def randomize(model: PreTrainedModel) -> None:
    """Give norms, biases and other vectors of a new model random values."""
    for module in model.modules():
        name = type(module).__name__
        is_norm = isinstance(module, nn.LayerNorm) or "RMSNorm" in name
        if is_norm and hasattr(module, "weight"):
            # Gemma 2 and 3 store what is added to 1, and Qwen3.5 but for norms before its gates.
            adds_to_1 = name.startswith(("Gemma2", "Gemma3")) or name == "Qwen3_5RMSNorm"
            center = 0.0 if adds_to_1 else 1.0
            module.weight.data.uniform_(center - 0.5, center + 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
        # They compete with scores.
        elif name.endswith("sinks"):
            parameter.data.normal_(0, 1)
        # They multiply what a router reads, and the shares that it gives.
        elif name.endswith(("router.scale", "per_expert_scale")):
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("A_log"):
            # So slowly that a state remembers a whole batch.
            parameter.data.uniform_(-3, 0)
    for name, buffer in model.named_buffers():
        # It multiplies the stream after a layer.
        if name.endswith("layer_scalar"):
            buffer.uniform_(0.5, 1.5)
        # It decides among scores from 0 to 1.
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.3)
