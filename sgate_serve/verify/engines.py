"""The engines that a converted folder can be verified on, behind two calls."""

from importlib.metadata import version
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.errors import EngineError
from sgate_serve.prepare import has_onnx, onnx_folder
from sgate_serve.verify.reference import TorchModel

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class VerifiedEngine(Protocol):
    """One loaded engine: logits [T, V] and residual streams [T, H] of token ids [T]."""

    name: str
    version: str

    def logits(self, tokens: Tokens) -> Floats: ...

    def residuals(self, tokens: Tokens) -> list[Floats]: ...


class OnnxModel:
    """The ONNX graph of a folder, run by the same runner that serves it."""

    name = "onnx"

    def __init__(self, folder: Checkpoint) -> None:
        from sgate_serve.engines.onnx import load_runner
        from sgate_serve.engines.scheduler import SlotOptions

        self.version = version("onnxruntime")
        self._folder = onnx_folder(folder)
        self._runner = load_runner(self._folder, SlotOptions(slots=1))

    def logits(self, tokens: Tokens) -> Floats:
        return self._runner.logits(tokens)

    def residuals(self, tokens: Tokens) -> list[Floats]:
        from sgate_serve.engines.onnx import residuals

        return residuals(self._folder, tokens)


def open_engine(name: str, folder: Checkpoint) -> VerifiedEngine:
    """Load `name` for a converted folder; "auto" is onnx where the folder holds a graph.

    Raises EngineError for an engine that cannot be verified.
    """
    if name == "auto":
        name = "onnx" if has_onnx(folder) else "torch"
    if name == "torch":
        return TorchModel.converted(folder.folder)
    if name == "onnx":
        return OnnxModel(folder)
    raise EngineError(f"--engine {name}: verify runs on auto, torch or onnx")
