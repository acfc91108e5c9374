"""The oracle: the masked dense model in transformers, fp32, with its weights rounded as stored."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

import sgate_serve.models  # noqa: F401  # registers model_type "sgate"
from converters.masked import MaskedCheckpoint

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class TorchModel:
    """A causal LM in fp32 that yields logits and the residual stream of one prompt."""

    name: str = "torch"
    version: str = str(torch.__version__)

    def __init__(self, model: Any) -> None:
        self.model = model.float().eval()

    @classmethod
    def masked_dense(cls, masked: MaskedCheckpoint) -> "TorchModel":
        """Build the dense architecture and fill it with masked weights, one tensor at a time."""
        config = AutoConfig.from_pretrained(masked.base.folder)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()
        for module in masked.spec.extra_biases - masked.base.spec.extra_biases:
            linear = model.get_submodule(module)
            linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in masked.spec.tensor_shapes():
                weight = np.array(masked.read(name), dtype=np.float32)
                parameters[name].copy_(torch.from_numpy(weight))
        return cls(model)

    @classmethod
    def converted(cls, folder: Path) -> "TorchModel":
        return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))

    def residuals(self, tokens: Tokens) -> list[Floats]:
        """Return the residual stream [T, H] after each layer, the last before the final norm."""
        streams: list[Floats] = []

        def record(module: Any, args: Any, hidden: torch.Tensor) -> None:
            streams.append(hidden[0].numpy().copy())

        layers = self.model.base_model.layers
        handles = [layer.register_forward_hook(record) for layer in layers]
        try:
            self.logits(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return streams

    def logits(self, tokens: Tokens) -> Floats:
        """Return the logits [T, V] of one prompt of T token ids."""
        with torch.inference_mode():
            output = self.model(torch.from_numpy(tokens)[None], use_cache=False)
        logits: Floats = output.logits[0].numpy()
        return logits
