"""Baselines for encoders: a dense classifier in torch, and its ONNX export by torch.

Both read texts of equal length without padding and are timed like our engine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.onnx.runner import open_session
from sgate_serve.models.loading import load_model
from sgate_serve.onnx_format.precision import FP32, PRECISIONS

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class EagerTorch:
    """A classifier in transformers, eager and in fp32: a `PoolingModel`."""

    name = "torch"
    version = str(torch.__version__)
    precision = PRECISIONS[FP32]

    def __init__(self, model: Checkpoint, threads: int) -> None:
        torch.set_num_threads(threads)
        self.max_model_len, self.vocab_size = model.spec.max_positions, model.spec.vocab_size
        self._model = load_model(model).float().eval()

    def encode(self, prompts: Sequence[Ints]) -> list[Floats]:
        ids = torch.from_numpy(np.stack(prompts))
        with torch.inference_mode():
            logits: Floats = self._model(ids, attention_mask=torch.ones_like(ids)).logits.numpy()
        return list(logits)

    def close(self) -> None:
        del self._model


class TorchExport:
    """The same classifier as `torch.onnx.export` writes it, in our ONNX Runtime session."""

    name = "onnx"
    version = str(ort.__version__)
    precision = PRECISIONS[FP32]

    def __init__(self, model: Checkpoint, folder: Path, threads: int) -> None:
        self.max_model_len, self.vocab_size = model.spec.max_positions, model.spec.vocab_size
        path = folder / "model.onnx"
        export(model, path)
        self._session = open_session(str(path), folder, threads)

    def encode(self, prompts: Sequence[Ints]) -> list[Floats]:
        ids = np.stack(prompts)
        values = dict(zip(_INPUTS, (ids, np.ones_like(ids)), strict=True))
        logits: Floats = self._session.run(None, values)[0]
        return list(logits)

    def close(self) -> None:
        del self._session


_INPUTS = ("input_ids", "attention_mask")


class _Logits(nn.Module):
    """A model whose only output is the logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids, attention_mask=attention_mask).logits
        return logits


def export(model: Checkpoint, path: Path) -> None:
    """Write the model with dynamic batch and length, using the exporter that torch recommends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.zeros((2, 16), dtype=torch.int64)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        _Logits(load_model(model).float()).eval(),
        (ids, torch.ones_like(ids)),
        path,
        input_names=list(_INPUTS),
        dynamic_shapes=dict.fromkeys(_INPUTS, free),
        dynamo=True,
        verbose=False,
    )
