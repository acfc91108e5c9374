"""A model in transformers whose cache holds what an int8 graph holds: rounded keys and values."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from converters.to_onnx.heads import HeadLayout
from sgate_serve.engines.sampling import Logits
from sgate_serve.loaders.torch_model import TorchModel


class RoundedCache(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """Rounds to whole steps; `scales` are those of keys and of values of each layer, [h, 1, d]."""

    def __init__(self, config: Any, scales: dict[int, list[torch.Tensor]]) -> None:
        super().__init__(config=config)
        self.scales = scales

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = (
            torch.clip(torch.round(states / scale), -128, 127) * scale
            for states, scale in zip(
                (key_states, value_states), self.scales[layer_idx], strict=True
            )
        )
        found: tuple[torch.Tensor, torch.Tensor] = super().update(*rounded, layer_idx, *args)
        return found


class RoundedModel:
    """The converted model of a folder with the rounding of the graph in another folder."""

    def __init__(self, model: Path, graph: Path) -> None:
        self._oracle = TorchModel.converted(model)
        self._constants = ir.load(graph / "model.onnx").graph.initializers

    def logits(self, tokens: NDArray[np.int64]) -> Logits:
        shapes = self._oracle.spec.layers
        attending = [i for i, one in enumerate(shapes) if one.num_heads and not one.is_recurrent]
        scales = {self._place(index): self._scales(index) for index in attending}
        cache = RoundedCache(self._oracle.model.config, scales)
        with torch.no_grad():
            output = self._oracle.model(
                torch.from_numpy(tokens)[None], past_key_values=cache, use_cache=True
            )
        logits: Logits = output.logits[0].numpy()
        return logits

    def _place(self, layer: int) -> int:
        """Return the place of a layer in the cache of its model."""
        prefix, modules = f"{self._oracle.spec.family.layer_name(layer)}.", self._oracle.model
        (place,) = {
            int(module.layer_idx)
            for name, module in modules.named_modules()
            if name.startswith(prefix) and hasattr(module, "layer_idx")
        }
        return place

    def _scales(self, layer: int) -> list[torch.Tensor]:
        """Return the scales of a layer without those of padding."""
        places, found = HeadLayout.of(self._oracle.spec, layer).positions(1), []
        for part in ("key", "value"):
            constant = self._constants[f"past_key_values.{layer}.{part}.scale"].const_value
            assert constant is not None
            found.append(torch.from_numpy(constant.numpy()[0][..., places]))
        return found
